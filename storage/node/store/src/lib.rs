//! Checkpoints and node identity in RocksDB, on a helper thread
