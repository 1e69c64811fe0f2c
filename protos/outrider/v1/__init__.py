"""Version 1 of the contract: the .proto files and their generated stubs."""
