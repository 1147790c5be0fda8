//! An offline checker.
