//! The order of steps in which no moment is unsafe: make before break.
//!
//! ```text
//!   next hops -> backends' rows -> rings that no service uses yet -> services that move to them, and that leave
//!     -> rings in use -> services that join them -> what is left behind
//! ```
//! A service leaves a ring before the ring takes the backends of others, and joins one after it has its
//! own. Not here: which steps there are.

use std::collections::BTreeSet;

use super::Step;

/// When a step comes; steps of one moment keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    NextHop,
    Row,
    FreshRing,
    Leave,
    UsedRing,
    Join,
    Forget,
    Remove,
    RemoveNextHop,
}

/// Orders the steps of a plan; `fresh` are the rings that no service uses yet.
pub fn order(mut steps: Vec<Step>, fresh: &BTreeSet<u32>) -> Vec<Step> {
    steps.sort_by_key(|step| match step {
        Step::PutNextHop(..) => Moment::NextHop,
        Step::PutNode(_) | Step::PutDevice(_) | Step::PutBackend(..) => Moment::Row,
        Step::PutSlots { ring, .. } if fresh.contains(ring) => Moment::FreshRing,
        Step::PutSlots { .. } => Moment::UsedRing,
        Step::PutService(_, row) if row.slots == 0 || fresh.contains(&row.ring) => Moment::Leave,
        Step::PutService(..) => Moment::Join,
        Step::RemoveService(_) => Moment::Leave,
        Step::ForgetFlows { .. } => Moment::Forget,
        Step::RemoveDevice(_) | Step::RemoveBackend(_) => Moment::Remove,
        Step::RemoveNextHop(_) => Moment::RemoveNextHop,
    });
    steps
}
