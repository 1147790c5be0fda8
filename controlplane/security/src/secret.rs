//! The cluster's secret.
//!
//! A file with one or more lines `basalt-secret-v1:BASE64`, each of 32 random bytes, that only its owner may
//! read. The first one signs, all are accepted, so that one can follow the other without a moment in which
//! nodes refuse each other.

use crate::SecurityError;
use crate::text::{base64, from_base64, random};
use ring::hkdf::{HKDF_SHA256, Salt};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

const PREFIX: &str = "basalt-secret-v1:";
/// A file of secrets is short.
const FILE_MAX: u64 = 64 << 10;
/// Secrets at a time: one that goes, one that is, one that comes, and room for accidents.
const SECRETS_MAX: usize = 8;
const SALT: &[u8] = b"basalt cluster secret v1";

/// What a key is for. Keys of different purposes tell nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The certificate authority's signatures.
    Authority,
    /// Tokens with which a machine joins.
    Join,
    /// Authentication of the data path's links.
    DataPath,
    /// Wraps the data keys of volumes.
    VolumeKeys,
    /// By what a secret is known that wraps them; it is no key.
    VolumeKeysName,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Purpose::Authority => b"certificate authority ed25519 v1",
            Purpose::Join => b"join tokens hmac-sha256 v1",
            Purpose::DataPath => b"data path v1",
            Purpose::VolumeKeys => b"volume keys aes-256-gcm v1",
            Purpose::VolumeKeysName => b"volume keys name v1",
        }
    }
}

/// One secret of 32 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new one.
    pub fn new() -> Secret {
        Secret(random())
    }

    /// The key for a purpose.
    pub fn key(&self, purpose: Purpose) -> [u8; 32] {
        let mut key = [0; 32];
        let label = [purpose.label()];
        let derived = Salt::new(HKDF_SHA256, SALT)
            .extract(&self.0)
            .expand(&label, HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key));
        assert!(derived.is_ok(), "a key has the length of the hash");
        key
    }

    fn line(&self) -> String {
        format!("{PREFIX}{}\n", base64(&self.0))
    }

    fn parse(line: &str) -> Option<Secret> {
        let bytes = from_base64(line.strip_prefix(PREFIX)?)?;
        bytes.try_into().ok().map(Secret)
    }
}

impl Default for Secret {
    fn default() -> Secret {
        Secret::new()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

/// The secrets of a cluster, the one that signs first. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// One new secret.
    pub fn new() -> Secrets {
        Secrets(vec![Secret::new()])
    }

    /// The one that signs.
    pub fn first(&self) -> &Secret {
        &self.0[0]
    }

    /// All that are accepted, the one that signs first.
    pub fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.0.iter()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The keys for a purpose, the one to use first; all are to be accepted.
    pub fn keys(&self, purpose: Purpose) -> Vec<[u8; 32]> {
        self.0.iter().map(|secret| secret.key(purpose)).collect()
    }

    /// With a new secret, which is accepted and does not sign yet.
    ///
    /// # Errors
    /// If there are too many already.
    pub fn with_next(&self) -> Result<Secrets, String> {
        if self.0.len() >= SECRETS_MAX {
            return Err(format!("{SECRETS_MAX} secrets are the most; drop old ones first"));
        }
        let mut all = self.0.clone();
        all.push(Secret::new());
        Ok(Secrets(all))
    }

    /// With the secret that was added last as the one that signs.
    ///
    /// # Errors
    /// If there is only one.
    pub fn promoted(&self) -> Result<Secrets, String> {
        if self.0.len() < 2 {
            return Err("there is no other secret; add one first".to_owned());
        }
        let mut all = self.0.clone();
        all.rotate_right(1);
        Ok(Secrets(all))
    }

    /// Only the one that signs.
    ///
    /// # Errors
    /// If there is no other.
    pub fn only_first(&self) -> Result<Secrets, String> {
        if self.0.len() < 2 {
            return Err("there is no other secret to drop".to_owned());
        }
        Ok(Secrets(vec![self.first().clone()]))
    }

    /// What stands in the file.
    pub fn text(&self) -> String {
        self.0.iter().map(Secret::line).collect()
    }

    /// Reads what stands in a file. Empty lines and such that begin with `#` are passed over.
    ///
    /// # Errors
    /// Says which line is wrong, without showing it.
    pub fn parse(text: &str) -> Result<Secrets, String> {
        let mut all: Vec<Secret> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let secret = Secret::parse(line).ok_or_else(|| {
                format!("line {number} is no secret; 'basalt secret new FILE' makes a file of one")
            })?;
            if all.contains(&secret) {
                return Err(format!("line {number} repeats a secret"));
            }
            all.push(secret);
        }
        match all.len() {
            0 => Err("it holds no secret; 'basalt secret new FILE' makes one".to_owned()),
            1..=SECRETS_MAX => Ok(Secrets(all)),
            more => Err(format!("it holds {more} secrets, more than {SECRETS_MAX}")),
        }
    }

    /// Reads a file that nobody but its owner may read.
    ///
    /// # Errors
    /// If it can not be read, others may read it, or it holds no secret.
    pub fn load(path: &Path) -> Result<Secrets, SecurityError> {
        let wrong = |why: String| SecurityError::file(path, why);
        let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
        let meta = file.metadata().map_err(|e| wrong(e.to_string()))?;
        if !meta.is_file() {
            return Err(wrong("it is no file".to_owned()));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(wrong(format!(
                "it is the cluster's secret, and others than its owner may read or change it (mode \
                 {:03o}); chmod 600 it, and make a new one if others may have seen it",
                meta.mode() & 0o777
            )));
        }
        let mut text = String::new();
        file.take(FILE_MAX).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
        Secrets::parse(&text).map_err(wrong)
    }

    /// Writes a file that does not exist yet.
    ///
    /// # Errors
    /// If it exists or can not be written.
    pub fn create(&self, path: &Path) -> Result<(), SecurityError> {
        write_private(path, self.text().as_bytes(), true)
    }

    /// Writes the file in place of one that exists, in one step.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn replace(&self, path: &Path) -> Result<(), SecurityError> {
        write_private(path, self.text().as_bytes(), false)
    }
}

impl Default for Secrets {
    fn default() -> Secrets {
        Secrets::new()
    }
}

/// Writes a file that only its owner may read, durably: all of it or nothing. `new` refuses a file that
/// exists.
///
/// # Errors
/// If it can not be written.
pub fn write_private(path: &Path, bytes: &[u8], new: bool) -> Result<(), SecurityError> {
    let wrong = |e: std::io::Error| SecurityError::file(path, e);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!(".{name}.{}", crate::text::hex(&random::<8>())));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match new {
            // A link does not replace what is there, which a rename would.
            true => std::fs::hard_link(&beside, path).and(std::fs::remove_file(&beside))?,
            false => std::fs::rename(&beside, path)?,
        }
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // Whatever is left of it helps nobody.
        let _ = std::fs::remove_file(&beside);
    }
    written.map_err(wrong)
}

/// By what a file is seen to have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Stamp {
    /// Of a file as it is now; nothing if it can not be looked at.
    pub fn of(path: &Path) -> Option<Stamp> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Stamp { modified: meta.modified().ok(), bytes: meta.len(), inode: meta.ino() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_differ_by_purpose_and_secret_and_stay() {
        let fixed = Secret([7; 32]);
        let hex = crate::text::hex(&fixed.key(Purpose::Authority));
        // It is part of every cluster's identity: another derivation would shut all nodes out.
        assert_eq!(hex, "3f42bfe7b9ca4daf68e0c7140cb52ebcedccdf44f4c84ee286e89fc6df4b3a59");
        let all = [
            Purpose::Authority,
            Purpose::Join,
            Purpose::DataPath,
            Purpose::VolumeKeys,
            Purpose::VolumeKeysName,
        ];
        let mut keys: Vec<[u8; 32]> = all.iter().map(|p| fixed.key(*p)).collect();
        keys.extend(all.iter().map(|p| Secret([8; 32]).key(*p)));
        let before = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), before);
    }

    #[test]
    fn secrets_follow_each_other() {
        let one = Secrets::new();
        assert!(one.promoted().is_err() && one.only_first().is_err());
        let two = one.with_next().expect("room");
        assert_eq!(two.first(), one.first());
        let swapped = two.promoted().expect("two");
        assert_ne!(swapped.first(), one.first());
        assert_eq!(swapped.promoted().expect("two"), two);
        let last = swapped.only_first().expect("two");
        assert_eq!((last.count(), last.first()), (1, swapped.first()));
        assert_eq!(Secrets::parse(&two.text()), Ok(two));
    }

    #[test]
    fn bad_files_are_refused_without_being_shown() {
        let line = Secret([1; 32]).line();
        let bad =
            ["", "# nothing\n", "basalt-secret-v1:AAAA", "hunter2", &[&*line, &line].concat()];
        for text in bad {
            let why = Secrets::parse(text).expect_err(text);
            assert!(!why.contains("hunter2") && !why.contains("AAAA"), "{why}");
        }
        assert_eq!(Secrets::parse(&format!("# ours\n\n  {line}")).expect("one").count(), 1);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let path = std::env::temp_dir().join(format!("basalt-secret-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let secrets = Secrets::new();
        secrets.create(&path).expect("written");
        assert!(secrets.create(&path).is_err(), "it exists");
        assert_eq!(Secrets::load(&path).expect("ours"), secrets);
        for mode in [0o640, 0o604, 0o602] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
            let why = Secrets::load(&path).expect_err("open to others").to_string();
            assert!(why.contains(&format!("{mode:03o}")) && why.contains("chmod"), "{why}");
        }
        let before = Stamp::of(&path);
        let next = secrets.with_next().expect("room");
        next.replace(&path).expect("replaced");
        assert_ne!(Stamp::of(&path), before);
        assert_eq!(Secrets::load(&path).expect("ours"), next, "it is private again");
        std::fs::remove_file(&path).expect("removed");
    }
}
