//! Numbers that nobody can foresee, and the request ids made of them.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A number that nobody can foresee, from the keys that the standard library draws from the system
/// for its hash maps.
pub fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// A request id that nobody used before. Whoever may have to send a change twice, because its answer
/// was lost or because another node is asked, sends it under one id.
pub fn request_id(who: &str) -> String {
    format!("{who}-{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_differ() {
        let (one, other) = (super::request_id("test"), super::request_id("test"));
        assert!(one.starts_with("test-") && one != other);
    }
}
