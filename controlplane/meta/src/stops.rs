//! Nodes that stop because they were told to. One that says so, and is back in time, was not dead: nothing is made anew
//! or moved because of it. How long it may take is up to whoever judges, see [`crate::liveness`].

use crate::state::{MetaState, Outcome, Refused};
use basalt_api::meta::v1::PlanStop;
use basalt_api::v1::event::Severity;
use basalt_api::v1::{Member, MemberState};

/// Whether a member said that it stops, and was neither back nor judged since.
pub fn is_stopping(member: &Member) -> bool {
    member.stopping_index != 0
}

/// A member that counts as dead, or as failed, does not come back as it was planned.
pub(crate) fn judged(member: &mut Member) {
    if crate::liveness::is_lost(member) {
        (member.stopping_index, member.stopping_since_ms) = (0, 0);
    }
}

impl MetaState {
    /// A node stops for a while, or is back.
    pub(crate) fn plan_stop(
        &mut self,
        index: u64,
        now_ms: i64,
        plan: &PlanStop,
    ) -> Result<Outcome, Refused> {
        let members = self.spec()?.members.iter_mut();
        let Some(member) = members.into_iter().find(|m| m.node == plan.node) else {
            return Err(crate::members::not_found(plan.node));
        };
        if plan.back && !is_stopping(member) {
            return Ok(Outcome::Nothing);
        }
        let said = if plan.back { (0, 0) } else { (index, now_ms) };
        (member.stopping_index, member.stopping_since_ms) = said;
        let member = member.clone();
        self.member_revisions.insert(member.name.clone(), index);
        Ok(Outcome::Member(member))
    }
}

/// What is told of a planned stop: how bad it is, its reason, its target, and a sentence.
pub(crate) fn told(plan: &PlanStop, m: &Member) -> (Severity, &'static str, String, String) {
    let (reason, message) = match (plan.back, m.state()) {
        (false, _) => ("NODE_STOPPING", "stops as planned, and is not judged dead for a while"),
        (true, MemberState::Suspect) => ("NODE_BACK", "is back, and was suspect meanwhile"),
        (true, _) => ("NODE_BACK", "is back from its planned stop"),
    };
    (Severity::Info, reason, format!("nodes/{}", m.name), message.to_owned())
}
