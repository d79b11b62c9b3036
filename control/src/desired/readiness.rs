//! Which backends take new flows, once operators and health checks have had their say.
//!
//! The sources' objects come first: a check or an operator takes a backend away, and never puts back one that
//! its object calls not ready.
//!
//! | who says no | new flows | flows it has |
//! |---|---|---|
//! | its object (`ready: false`) | to others | as its object says (`serving`) |
//! | an operator (drain) | to others | stay for the drain window |
//! | its health check | to others | to others: it is dead |
//!
//! A service whose backends have all failed their checks has none: its packets are dropped with a reason, and
//! its address is withdrawn, so that another node, or another site, can serve it. Nothing is sent to where it
//! is known to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use super::announce::of_diff;
use super::check::Target;
use super::drain::Drains;
use super::{Backend, BackendAddr, Desired, Frontend, Service};

/// Whether each checked target is taken to serve.
pub type Verdicts = BTreeMap<Target, bool>;

/// The services whose backends are checked, found again at the cost of what has changed. It may be lost.
#[derive(Debug, Default)]
pub struct Checked {
    services: OrdMap<Frontend, Arc<Service>>,
    checked: BTreeSet<Frontend>,
}

impl Checked {
    /// Follows what is desired, before it is judged.
    pub fn follow(&mut self, desired: &Desired) {
        for change in self.services.diff(&desired.services) {
            let frontend = of_diff(&change);
            let service = desired.services.get(&frontend);
            if service.is_some_and(|service| service.check.is_some()) {
                self.checked.insert(frontend);
            } else {
                self.checked.remove(&frontend);
            }
        }
        self.services = desired.services.clone();
    }

    /// Those of what was followed last.
    pub fn services<'a>(&'a self, desired: &'a Desired) -> impl Iterator<Item = &'a Arc<Service>> {
        let checked = self.checked.iter();
        checked.filter_map(|frontend| desired.services.get(frontend))
    }

    /// Everyone whose health is asked for.
    pub fn targets(&self, desired: &Desired) -> BTreeSet<Target> {
        self.services(desired)
            .filter_map(|service| Some((service.check.as_ref()?, &service.backends)))
            .flat_map(|(check, backends)| backends.keys().map(|at| check.target(at)))
            .collect()
    }
}

/// How a backend stands, in the word that people are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It takes new flows.
    Ready,
    /// Its object says that it is going; it keeps its flows.
    Terminating,
    /// An operator drains it.
    Drained,
    /// It has failed its health check.
    Unhealthy,
    /// Its object says that it is not ready.
    NotReady,
}

impl Standing {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Terminating,
        Self::Drained,
        Self::Unhealthy,
        Self::NotReady,
    ];

    /// The printed name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Terminating => "terminating",
            Self::Drained => "drained",
            Self::Unhealthy => "unhealthy",
            Self::NotReady => "not-ready",
        }
    }
}

/// How a backend of a service stands. The same before and after [`judge`].
pub fn standing(
    service: &Service,
    at: &BackendAddr,
    backend: Backend,
    verdicts: &Verdicts,
    drains: &Drains,
) -> Standing {
    let check = service.check.as_ref();
    let has_failed = check.is_some_and(|check| verdicts.get(&check.target(at)) == Some(&false));
    if has_failed {
        Standing::Unhealthy
    } else if drains.iter().any(|drain| drain.covers(service, at)) {
        Standing::Drained
    } else if backend.ready {
        Standing::Ready
    } else if backend.serving {
        Standing::Terminating
    } else {
        Standing::NotReady
    }
}

/// Takes away what health checks and operators take away. A service that comes to what it was `before` is that
/// value, by which plans know that nothing has changed.
pub fn judge(
    desired: &mut Desired,
    checked: &Checked,
    verdicts: &Verdicts,
    drains: &Drains,
    before: &Desired,
) {
    let services = desired.services.clone();
    let judged: Vec<&Frontend> = if drains.is_empty() {
        checked.checked.iter().collect()
    } else {
        services.keys().collect()
    };
    for frontend in judged {
        let Some(service) = services.get(frontend) else {
            continue;
        };
        let mut judged = BTreeMap::new();
        for (at, backend) in service.backends.iter() {
            let (ready, serving) = match standing(service, at, *backend, verdicts, drains) {
                Standing::Unhealthy => (false, false),
                Standing::Drained => (false, backend.serving),
                Standing::Ready | Standing::Terminating | Standing::NotReady => continue,
            };
            let backend = Backend {
                ready,
                serving,
                ..*backend
            };
            judged.insert(*at, backend);
        }
        if judged.is_empty() {
            continue;
        }
        let mut service = Service::clone(service);
        Arc::make_mut(&mut service.backends).extend(judged);
        let known = before.services.get(frontend);
        let known = known.filter(|known| ***known == service);
        let service = known.map_or_else(|| Arc::new(service), Arc::clone);
        desired.services.insert(*frontend, service);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::*;
    use crate::desired::drain::Drain;
    use crate::desired::{Home, ObjectName};

    fn at(last: u8) -> BackendAddr {
        BackendAddr {
            addr: IpAddr::from([10, 0, 0, last]),
            port: 80,
        }
    }

    fn service(name: &str, backends: &[(u8, bool, bool)]) -> Service {
        let backends = backends.iter().map(|&(last, ready, serving)| {
            let backend = Backend {
                ready,
                serving,
                weight: 1,
                home: Home::Bare,
            };
            (at(last), backend)
        });
        Service {
            object: ObjectName {
                namespace: "default".to_owned(),
                name: name.to_owned(),
            },
            check: Some("tcp".parse().unwrap()),
            backends: Arc::new(backends.collect()),
            ..Service::default()
        }
    }

    fn judged(service: &Service, verdicts: &[(u8, bool)], drains: &Drains) -> Vec<(bool, bool)> {
        let verdicts: Verdicts = verdicts
            .iter()
            .map(|&(last, works)| (service.check.as_ref().unwrap().target(&at(last)), works))
            .collect();
        let mut desired = Desired::default();
        let frontend = crate::desired::Frontend {
            addr: IpAddr::from([192, 0, 2, 1]),
            port: 80,
            proto: fairlead_common::addr::Proto::TCP,
            scope: crate::desired::Scope::Outside,
        };
        desired.services.insert(frontend, service.clone().into());
        let mut checked = Checked::default();
        checked.follow(&desired);
        let before = Desired::default();
        let again = |desired: &mut Desired| judge(desired, &checked, &verdicts, drains, &before);
        again(&mut desired);
        let once = desired.clone();
        again(&mut desired);
        assert_eq!(desired, once, "judging twice says the same");
        let after = &desired.services[&frontend];
        for (at, backend) in service.backends.iter() {
            assert_eq!(
                standing(service, at, *backend, &verdicts, drains),
                standing(after, at, after.backends[at], &verdicts, drains),
                "judging does not change the word"
            );
        }
        after
            .backends
            .values()
            .map(|b| (b.ready, b.serving))
            .collect()
    }

    fn drain(last: u8, port: Option<u16>, service: Option<&str>) -> Drains {
        let service = service.map(|name| ObjectName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        });
        let drain = Drain {
            address: at(last).addr,
            port,
            service,
        };
        [drain].into()
    }

    #[test]
    fn a_failed_backend_neither_takes_flows_nor_keeps_them() {
        let web = service("web", &[(1, true, true), (2, true, true)]);

        let after = judged(&web, &[(1, false), (2, true)], &Drains::new());

        assert_eq!(after, [(false, false), (true, true)]);
    }

    #[test]
    fn a_good_answer_does_not_make_ready_what_its_object_calls_not_ready() {
        let web = service("web", &[(1, false, true), (2, false, false)]);

        let after = judged(&web, &[(1, true), (2, true)], &Drains::new());

        assert_eq!(after, [(false, true), (false, false)]);
    }

    #[test]
    fn a_drained_backend_keeps_its_flows_unless_it_fails() {
        let web = service("web", &[(1, true, true), (2, true, true)]);

        assert_eq!(
            judged(&web, &[], &drain(1, None, None)),
            [(false, true), (true, true)]
        );
        assert_eq!(
            judged(&web, &[(1, false)], &drain(1, None, None)),
            [(false, false), (true, true)]
        );
    }

    #[test]
    fn a_drain_is_for_the_port_and_the_service_that_it_names() {
        let web = service("web", &[(1, true, true)]);
        let is_ready = |drains| judged(&web, &[], &drains)[0].0;

        assert!(!is_ready(drain(1, Some(80), Some("web"))));
        assert!(is_ready(drain(1, Some(81), None)));
        assert!(is_ready(drain(1, None, Some("other"))));
        assert!(is_ready(drain(2, None, None)));
    }

    #[test]
    fn a_service_that_asks_for_no_check_has_no_targets() {
        let mut desired = Desired::default();
        let frontend = |last: u8| crate::desired::Frontend {
            addr: IpAddr::from([192, 0, 2, last]),
            port: 80,
            proto: fairlead_common::addr::Proto::TCP,
            scope: crate::desired::Scope::Outside,
        };
        let asks = service("web", &[(1, true, true)]);
        let silent = Service {
            check: None,
            ..service("other", &[(2, true, true)])
        };
        // The same service at two addresses asks once.
        desired.services.insert(frontend(1), asks.clone().into());
        desired.services.insert(frontend(2), asks.into());
        desired.services.insert(frontend(3), silent.into());

        let mut checked = Checked::default();
        let mut found = |desired: &Desired| -> Vec<SocketAddr> {
            checked.follow(desired);
            let targets = checked.targets(desired).into_iter();
            targets.map(|target| target.at).collect()
        };
        assert_eq!(found(&desired), ["10.0.0.1:80".parse().unwrap()]);

        // Neither does one that asks no more, or is no more.
        let silent = Service {
            check: None,
            ..service("web", &[(1, true, true)])
        };
        desired.services.insert(frontend(1), silent.into());
        desired.services.remove(&frontend(2));
        assert_eq!(found(&desired), []);
    }
}
