//! Which backend a packet goes to, by the datapath's own choice on the tables as they were read.

use std::collections::BTreeMap;

use fairlead_common::choice::{self, Choice};
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::reason::Reason;
use fairlead_common::service::{Service, ServiceKey};

use crate::plan::Actual;
use crate::plan::packets::Packets;

/// What the tables say of a packet, step by step.
#[derive(Clone, Copy, Debug)]
pub(in crate::view) struct Course {
    /// Where it would be looked for.
    pub key: ServiceKey,
    /// The service's row.
    pub service: Option<Service>,
    /// What the service does with it; absent: there is no service.
    pub choice: Option<Result<Choice, Reason>>,
    /// The flow's row in `FLOWS` before.
    pub remembered: Option<Flow>,
}

impl Course {
    /// The choice, when there is one.
    pub fn chosen(&self) -> Option<Choice> {
        self.choice.and_then(Result::ok)
    }
}

/// Computes it. `remembered` is the flow's row in `FLOWS`; `begins` says that the packet is a SYN without ACK.
pub(in crate::view) fn course(
    actual: &Actual,
    key: ServiceKey,
    flow: &FlowKey,
    begins: bool,
    remembered: Option<Flow>,
    now_s: u32,
) -> Course {
    let service = actual.services.get(&key).copied();
    let mut flows: BTreeMap<_, _> = remembered.map(|known| (*flow, known)).into_iter().collect();
    let mut tables = Packets {
        actual,
        flows: &mut flows,
        now_s,
    };
    Course {
        key,
        service,
        choice: service.map(|row| choice::choose(&mut tables, &row, flow, begins)),
        remembered,
    }
}
