"""Alpha Panda Core: the persistence layer of an algorithmic-trading system."""
