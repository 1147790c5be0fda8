//! Bearer tokens, and the tokens with which machines joined.

use crate::rules;
use crate::state::{MetaState, Outcome, Refused, refusal};
use basalt_api::meta::v1::state_record::Record;
use basalt_api::meta::v1::{CreateToken, RevokeToken, TokenRecord, UseJoinToken};
use basalt_api::v1::ErrorReason;
use basalt_security::Role;
use basalt_security::principal::check_name;
use std::collections::{BTreeMap, VecDeque};

/// The most tokens of a cluster.
const TOKENS_MAX: usize = 10_000;
/// The longest time for which a token holds: ten years.
const TTL_MAX_MS: u64 = 3650 * 86_400_000;
/// How many used join tokens are remembered; the oldest go first. Each holds a day at most. It is counted and not
/// timed: a proposer whose clock is ahead would have them forgotten while others still take them.
const JOINS_KEPT: usize = 10_000;
const SHA256_BYTES: usize = 32;
const CREATOR_MAX: usize = 128;

/// Who may ask, besides holders of certificates.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    by_id: BTreeMap<String, TokenRecord>,
    /// Names by what is kept of the tokens.
    by_sha256: BTreeMap<Vec<u8>, String>,
    /// Ids of join tokens that were used, in that order.
    joined: VecDeque<String>,
}

impl Tokens {
    /// All that is kept, in order.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let joined = self.joined.iter().map(|id| UseJoinToken { id: id.clone() });
        self.by_id.values().cloned().map(Record::Token).chain(joined.map(Record::JoinToken))
    }

    /// All bearer tokens end. Which machines have joined stays known.
    pub(crate) fn end_all(&mut self) {
        (self.by_id, self.by_sha256) = (BTreeMap::new(), BTreeMap::new());
    }

    /// Takes a token that was kept.
    ///
    /// # Errors
    /// If it can not be one, or not behind those before it.
    pub(crate) fn restore(&mut self, token: TokenRecord) -> Result<(), String> {
        rules::check_token_id(&token.id)?;
        let in_order = self.by_id.last_key_value().is_none_or(|(last, _)| *last < token.id);
        let fits =
            token.sha256.len() == SHA256_BYTES && !self.by_sha256.contains_key(&token.sha256);
        if !in_order || !fits || self.by_id.len() >= TOKENS_MAX {
            return Err(format!("the token '{}' is out of order, doubled or too much", token.id));
        }
        self.by_sha256.insert(token.sha256.clone(), token.id.clone());
        self.by_id.insert(token.id.clone(), token);
        Ok(())
    }

    /// Takes a join token that was used.
    ///
    /// # Errors
    /// If it can not be one, is doubled, or one too many.
    pub(crate) fn restore_joined(&mut self, used: UseJoinToken) -> Result<(), String> {
        check_name(&used.id)?;
        if self.joined.contains(&used.id) || self.joined.len() >= JOINS_KEPT {
            return Err("join tokens are doubled or too many".to_owned());
        }
        self.joined.push_back(used.id);
        Ok(())
    }
}

impl MetaState {
    /// The token of which this is the SHA-256; it may be over.
    pub fn token_of(&self, sha256: &[u8]) -> Option<&TokenRecord> {
        self.tokens.by_id.get(self.tokens.by_sha256.get(sha256)?)
    }

    /// Tokens whose names come after `id`, in order.
    pub fn tokens_after(&self, id: &str) -> impl Iterator<Item = &TokenRecord> {
        use std::ops::Bound;
        let range = (Bound::Excluded(id), Bound::Unbounded);
        self.tokens.by_id.range::<str, _>(range).map(|(_, token)| token)
    }

    pub(crate) fn create_token(
        &mut self,
        now_ms: i64,
        create: CreateToken,
    ) -> Result<Outcome, Refused> {
        let invalid = |field: &str, message: String| {
            refusal(ErrorReason::InvalidField, message, vec![("field", field.to_owned())])
        };
        rules::check_token_id(&create.id).map_err(|e| invalid("token_id", e))?;
        match create.role.parse::<Role>().map_err(|e| invalid("role", e))? {
            Role::Node => {
                let message =
                    "a node is known by its certificate only; there are no tokens for nodes";
                return Err(invalid("role", message.to_owned()));
            }
            Role::Viewer | Role::Operator | Role::Admin | Role::Csi => {}
        }
        if create.sha256.len() != SHA256_BYTES {
            let message =
                format!("a SHA-256 has {SHA256_BYTES} bytes, not {}", create.sha256.len());
            return Err(invalid("sha256", message));
        }
        if !(1000..=TTL_MAX_MS).contains(&create.ttl_ms) {
            let message = "a token holds for one second to ten years".to_owned();
            return Err(invalid("ttl_seconds", message));
        }
        if self.tokens.by_id.contains_key(&create.id)
            || self.tokens.by_sha256.contains_key(&create.sha256)
        {
            let message = format!("the token '{}' exists already; revoke it first", create.id);
            return Err(refusal(ErrorReason::TokenExists, message, vec![("token", create.id)]));
        }
        if self.tokens.by_id.len() >= TOKENS_MAX {
            let message = format!("the cluster has {TOKENS_MAX} tokens, the most it can have");
            return Err(refusal(ErrorReason::Limit, message, vec![]));
        }
        let ttl_ms = i64::try_from(create.ttl_ms).unwrap_or(i64::MAX);
        let mut creator = create.creator;
        creator.truncate(creator.floor_char_boundary(CREATOR_MAX));
        let token = TokenRecord {
            id: create.id.clone(),
            role: create.role,
            sha256: create.sha256.clone(),
            creator,
            create_time_ms: now_ms,
            expires_ms: now_ms.saturating_add(ttl_ms),
        };
        self.tokens.by_sha256.insert(create.sha256, create.id.clone());
        self.tokens.by_id.insert(create.id, token.clone());
        Ok(Outcome::Token(token))
    }

    pub(crate) fn revoke_token(&mut self, revoke: &RevokeToken) -> Result<Outcome, Refused> {
        let Some(token) = self.tokens.by_id.remove(&revoke.id) else {
            let shown = revoke.id.escape_debug().to_string();
            let message = format!(
                "there is no token '{shown}'; 'basalt token list' shows those that there are"
            );
            return Err(refusal(ErrorReason::TokenNotFound, message, vec![("token", shown)]));
        };
        self.tokens.by_sha256.remove(&token.sha256);
        Ok(Outcome::Token(token))
    }

    /// Remembers that a join token was used.
    pub(crate) fn use_join_token(&mut self, join: UseJoinToken) -> Result<Outcome, Refused> {
        check_name(&join.id).map_err(|e| refusal(ErrorReason::InvalidField, e, vec![]))?;
        let joined = &mut self.tokens.joined;
        if joined.contains(&join.id) {
            let message = "a machine joined with this token before; make a new one for each machine \
                           ('basalt node token')";
            return Err(refusal(ErrorReason::JoinTokenUsed, message.to_owned(), vec![]));
        }
        joined.push_back(join.id);
        if joined.len() > JOINS_KEPT {
            joined.pop_front();
        }
        Ok(Outcome::Nothing)
    }
}
