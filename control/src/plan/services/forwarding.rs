//! How packets get to hosts without an agent, as their services ask.
//!
//! A backend's row is one for all services that have it, so services of one backend address and port must agree.
//! Not here: backends that a node's agent translates for.

use fairlead_common::service::forward;
use hashbrown::HashMap;

use crate::desired::{BackendAddr, Condition, Desired, Forwarding, Frontend, Home, Service};
use crate::plan::Reach;

/// What is asked for each backend without an agent. The first service decides; others are told.
pub(super) fn asked(
    desired: &Desired,
    conditions: &mut Vec<(Frontend, Condition)>,
) -> HashMap<BackendAddr, Forwarding> {
    let mut asked = HashMap::<BackendAddr, &Service>::new();
    for (frontend, service) in &desired.services {
        for (at, _) in service
            .backends
            .iter()
            .filter(|(_, one)| one.home == Home::Bare)
        {
            let first = *asked.entry(*at).or_insert(service);
            if first.forwarding != service.forwarding {
                let condition = Condition {
                    object: format!("Service {}", service.object),
                    origin: String::new(),
                    reason: "ForwardingConflict".to_owned(),
                    message: format!(
                        "backend {at} is Service {}'s too, which forwards to it by {}; annotate both alike",
                        first.object,
                        first.forwarding.name()
                    ),
                };
                conditions.push((*frontend, condition));
            }
        }
    }
    let forwarding = |(at, service): (_, &Service)| (at, service.forwarding);
    asked.into_iter().map(forwarding).collect()
}

/// The row's value for a host that is reached so.
pub(super) const fn of_host(asked: Forwarding, reach: Reach) -> u8 {
    match (asked, reach) {
        (Forwarding::DsrGue, _) => forward::GUE,
        (Forwarding::Nat, _) => forward::NAT,
        (Forwarding::DsrIpip, _) => forward::ENCAPSULATE,
        (Forwarding::Auto | Forwarding::DsrL2, Reach::OnLink | Reach::ByStack) => forward::L2,
        (Forwarding::Auto | Forwarding::DsrL2, _) => forward::ENCAPSULATE,
    }
}

/// Whether the host can be reached as the service asks: a router passes no frame on.
pub(super) fn is_possible(asked: Forwarding, home: Home, reach: impl FnOnce() -> Reach) -> bool {
    !(asked == Forwarding::DsrL2 && home == Home::Bare && reach() == Reach::Routed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fairlead_common::addr::Proto;

    use super::*;
    use crate::desired::{Backend, ObjectName, Scope};

    fn at() -> BackendAddr {
        BackendAddr {
            addr: [10, 0, 0, 1].into(),
            port: 80,
        }
    }

    fn desired(services: &[(&str, Forwarding, Home)]) -> Desired {
        let mut desired = Desired::default();
        for (last, &(name, forwarding, home)) in (1..).zip(services) {
            let frontend = Frontend {
                addr: [192, 0, 2, last].into(),
                port: 80,
                proto: Proto::TCP,
                scope: Scope::Outside,
            };
            let backend = Backend {
                ready: true,
                serving: true,
                weight: 1,
                home,
            };
            let service = Service {
                object: ObjectName {
                    namespace: "default".to_owned(),
                    name: name.to_owned(),
                },
                forwarding,
                backends: Arc::new([(at(), backend)].into()),
                ..Service::default()
            };
            desired.services.insert(frontend, service.into());
        }
        desired
    }

    #[test]
    fn services_of_one_backend_must_agree_and_the_first_decides() {
        let mut conditions = Vec::new();
        let desired = desired(&[
            ("one", Forwarding::DsrGue, Home::Bare),
            ("two", Forwarding::DsrGue, Home::Bare),
            ("three", Forwarding::DsrIpip, Home::Bare),
            ("pods", Forwarding::Auto, Home::Elsewhere),
        ]);

        let asked = asked(&desired, &mut conditions);

        assert_eq!(asked, [(at(), Forwarding::DsrGue)].into());
        let [(_, condition)] = &conditions[..] else {
            panic!("{conditions:?}");
        };
        assert_eq!(condition.object, "Service default/three");
        assert_eq!(
            condition.message,
            "backend 10.0.0.1:80 is Service default/one's too, which forwards to it by dsr-gue; annotate both alike"
        );
    }

    #[test]
    fn a_tunnel_is_used_on_the_link_too_where_it_is_asked_for() {
        for (asked, on_link, routed) in [
            (Forwarding::Auto, forward::L2, forward::ENCAPSULATE),
            (Forwarding::DsrL2, forward::L2, forward::ENCAPSULATE),
            (
                Forwarding::DsrIpip,
                forward::ENCAPSULATE,
                forward::ENCAPSULATE,
            ),
            (Forwarding::DsrGue, forward::GUE, forward::GUE),
            (Forwarding::Nat, forward::NAT, forward::NAT),
        ] {
            assert_eq!(of_host(asked, Reach::OnLink), on_link, "{}", asked.name());
            assert_eq!(of_host(asked, Reach::Routed), routed, "{}", asked.name());
        }
    }

    #[test]
    fn only_rewriting_macs_needs_a_host_on_the_link() {
        for (asked, home, reach, expected) in [
            (Forwarding::DsrL2, Home::Bare, Reach::Routed, false),
            (Forwarding::DsrL2, Home::Bare, Reach::OnLink, true),
            (Forwarding::DsrL2, Home::Elsewhere, Reach::Routed, true),
            (Forwarding::Auto, Home::Bare, Reach::Routed, true),
        ] {
            assert_eq!(is_possible(asked, home, || reach), expected);
        }
    }
}
