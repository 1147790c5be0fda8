//! Foreign clients against a real cluster
