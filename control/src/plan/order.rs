//! The order of steps in which no moment is unsafe: make before break.
//!
//! ```text
//!   addresses that no service has any more, and arrivals -> counters of new ids -> next hops, whose answers to
//!     look for -> backends' rows -> whom arrivals are for -> rings that no service uses yet -> services that move
//!     to them, and that leave
//!     -> rings in use -> services that join them -> the addresses of services -> what is left behind
//! ```
//! A service leaves a ring before the ring takes the backends of others, and joins one after it has its
//! own. Packets to the address of a service that are not its own end there, so an address is known no longer
//! than its services are. Sources are let in before the row that asks for them, and kept out after the row that
//! does not. Not here: which steps there are.

use std::collections::BTreeSet;

use super::Step;

/// When a step comes; steps of one moment keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Disown,
    Clear,
    EndOfArrival,
    NextHop,
    Answers,
    Row,
    Arrival,
    FreshRing,
    Leave,
    UsedRing,
    Join,
    Own,
    Forget,
    Remove,
    RemoveLast,
}

/// Orders the steps of a plan; `fresh` are the rings that no service uses yet.
pub fn order(mut steps: Vec<Step>, fresh: &BTreeSet<u32>) -> Vec<Step> {
    steps.sort_by_key(|step| match step {
        Step::RemoveAddress(_) => Moment::Disown,
        Step::ClearCounts { .. } => Moment::Clear,
        Step::PutNextHop(..) => Moment::NextHop,
        Step::RemoveArrival(_) => Moment::EndOfArrival,
        Step::PutServing(_) | Step::PutNode(_) => Moment::Answers,
        Step::PutDevice(_) | Step::PutBackend(..) | Step::PutSourceRange(_) => Moment::Row,
        Step::PutArrival(..) => Moment::Arrival,
        Step::PutSlots { ring, .. } if fresh.contains(ring) => Moment::FreshRing,
        Step::PutSlots { .. } => Moment::UsedRing,
        Step::PutService(_, row) if row.slots == 0 || fresh.contains(&row.ring) => Moment::Leave,
        Step::PutService(..) => Moment::Join,
        Step::RemoveService(_) => Moment::Leave,
        Step::PutAddress(..) | Step::PutSieve(_) => Moment::Own,
        Step::ForgetFlows { .. } => Moment::Forget,
        Step::RemoveDevice(_) | Step::RemoveBackend(_) | Step::RemoveSourceRange(_) => {
            Moment::Remove
        }
        Step::RemoveNextHop(_) | Step::RemoveServing(_) => Moment::RemoveLast,
    });
    steps
}
