//! The volume client: routing, sessions, retries, sub-block requests
