//! The NBD front door: protocol sessions over a volume client
