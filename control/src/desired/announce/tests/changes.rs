//! What is offered after a change is what is offered from nothing.

use proptest::prelude::*;

use super::*;

/// A frontend among few addresses, so that several have one prefix.
fn at(number: u8) -> Frontend {
    Frontend {
        addr: IpAddr::from([192, 0, 2, 10 + number % 3]),
        port: 80 + u16::from(number / 3),
        scope: if number.is_multiple_of(5) {
            Scope::Inside
        } else {
            Scope::Outside
        },
        ..frontend()
    }
}

/// A service in one of several states.
fn variant(state: u8) -> Arc<Service> {
    let mut service = Service::clone(&desired().services[&frontend()]);
    service.object.name = format!("s{}", state % 3);
    service.only_local = state & 4 != 0;
    if state & 8 != 0 {
        service.backends = Arc::default();
    }
    if state & 16 != 0 {
        service.labels.clear();
    }
    if state & 32 != 0 {
        service.address_kinds = BTreeSet::from([AddressKind::Cluster]);
    }
    Arc::new(service)
}

#[derive(Clone, Debug)]
enum Change {
    Service(u8, Option<u8>),
    Ring(u8, Option<u32>),
    Attach(bool),
    Tell(bool),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0_u8..9, prop::option::weighted(0.8, any::<u8>()))
            .prop_map(|(at, state)| Change::Service(at, state)),
        4 => (0_u8..9, prop::option::weighted(0.8, 0_u32..3))
            .prop_map(|(at, count)| Change::Ring(at, count)),
        1 => any::<bool>().prop_map(Change::Attach),
        1 => any::<bool>().prop_map(Change::Tell),
    ]
}

proptest! {
    #[test]
    fn what_was_offered_before_makes_no_difference(
        changes in prop::collection::vec(change(), 1..40),
    ) {
        let (mut desired, mut programmed) = (desired(), programmed());
        let routers = desired.routers.clone();
        let mut memory = Memory::default();
        for change in changes {
            match change {
                Change::Service(number, Some(state)) => {
                    desired.services.insert(at(number), variant(state));
                }
                Change::Service(number, None) => {
                    desired.services.remove(&at(number));
                }
                Change::Ring(number, Some(count)) => {
                    programmed.services.insert(at(number), count);
                }
                Change::Ring(number, None) => {
                    programmed.services.remove(&at(number));
                }
                Change::Attach(is_attached) => programmed.attached = is_attached,
                Change::Tell(true) => desired.routers.clone_from(&routers),
                Change::Tell(false) => tell(&mut desired, &[What::PodCidrs]),
            }

            let found = announcements_since(&mut memory, &desired, &programmed);

            prop_assert_eq!(found, announcements(&desired, &programmed));
        }
    }
}
