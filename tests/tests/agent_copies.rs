//! The copies by which packets find services, as an agent keeps them and the next one finds them.

use std::net::Ipv4Addr;

use fairlead_common::addr::{Port, Proto};
use fairlead_common::service::{Service, ServiceCopy, ServiceKey};
use fairlead_common::tables::{ServiceCells, ServiceCopies, Services};
use fairlead_control::dataplane::apply::KernelStore;
use fairlead_control::dataplane::table::Pinned;
use fairlead_control::plan::{Step, Store as _};
use fairlead_tests::place::Place;
use fairlead_tests::root::is_root;

fn service_at(addr: u32) -> ServiceKey {
    ServiceKey::new(Ipv4Addr::from(addr).into(), Port::new(80), Proto::TCP)
}

fn service() -> ServiceKey {
    service_at(u32::from(Ipv4Addr::new(192, 0, 2, 80)))
}

#[test]
fn packets_find_copies_that_follow_the_table_of_services() {
    if !is_root() {
        return;
    }
    let place = Place::make().unwrap();
    place.load().unwrap();
    let pins = &place.pins;
    let open = || KernelStore::open(pins).unwrap();
    let named = || {
        let cells = Pinned::<ServiceCells>::open(pins).unwrap();
        let at = cells.get(&service().cell()).unwrap().unwrap() as u32;
        let copies = Pinned::<ServiceCopies>::open(pins).unwrap();
        (at, copies.get(&at).unwrap().unwrap())
    };
    let row = |slots| Service {
        slots,
        ..Service::default()
    };
    let copy = |key, slots| ServiceCopy {
        key,
        service: row(slots),
    };
    let put = |key, slots| Step::PutService(key, row(slots));
    let twin = (1..u32::MAX)
        .map(service_at)
        .find(|key| key.cell() == service().cell())
        .unwrap();
    let mut store = open();
    assert_eq!(named(), (0, ServiceCopy::default()));

    store.apply(&put(service(), 4)).unwrap();
    let (first, found) = named();
    assert_eq!(found, copy(service(), 4));
    store.apply(&put(service(), 5)).unwrap();
    let (second, found) = named();
    assert_eq!(found, copy(service(), 5));
    assert_ne!(first, second, "a copy that packets read was written");
    // A cell has one service; the other is found in the table.
    store.apply(&put(twin, 6)).unwrap();
    assert_eq!(named(), (second, copy(service(), 5)));
    store.apply(&Step::RemoveService(twin)).unwrap();
    assert_eq!(named(), (second, copy(service(), 5)));
    store.apply(&put(twin, 6)).unwrap();
    store.apply(&Step::RemoveService(service())).unwrap();
    assert_eq!(named().0, 0);

    // The next agent finds what none has, and what one that died has not said.
    drop(open());
    let (third, found) = named();
    assert_eq!(found, copy(twin, 6));
    let mut services = Pinned::<Services>::open(pins).unwrap();
    services.set(&twin, &row(7)).unwrap();
    drop(open());
    let (fourth, found) = named();
    assert_eq!(found, copy(twin, 7));
    assert_ne!(third, fourth, "a copy that packets may read was written");
    services.remove(&twin).unwrap();
    drop(open());
    assert_eq!(named().0, 0);
}
