use proptest::prelude::*;

use super::super::pool::Range;
use super::*;
use crate::object::LabelSelector;

fn pool(name: &str, first: &str, last: &str) -> Pool {
    let range = Range {
        first: first.parse().unwrap(),
        last: last.parse().unwrap(),
    };
    Pool {
        name: name.to_owned(),
        age: (None, name.to_owned()),
        ranges: vec![range],
        selector: LabelSelector::default(),
        is_disabled: false,
    }
}

fn request(name: &str) -> Request {
    Request {
        name: ObjectName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        },
        families: vec![true],
        needs_all: true,
        ..Request::default()
    }
}

fn asking(name: &str, ip: &str) -> Request {
    Request {
        asked: vec![ip.parse().unwrap()],
        ..request(name)
    }
}

fn sharing(name: &str, key: &str, port: i32) -> Request {
    let sharing = Sharing {
        key: key.to_owned(),
        ports: BTreeSet::from([("TCP".to_owned(), port)]),
        ..Sharing::default()
    };
    Request {
        sharing: Some(sharing),
        ..request(name)
    }
}

fn name(service: &str) -> ObjectName {
    request(service).name
}

/// Addresses and the reason why there are no more.
fn of(allocation: &Allocation, service: &str) -> (Vec<String>, Option<&'static str>) {
    let given = &allocation.services[&name(service)];
    let addresses = given.addresses.iter().map(ToString::to_string).collect();
    (addresses, given.lack.as_ref().map(|lack| lack.reason))
}

fn has(ip: &str) -> (Vec<String>, Option<&'static str>) {
    (vec![ip.to_owned()], None)
}

fn lacks(reason: &'static str) -> (Vec<String>, Option<&'static str>) {
    (vec![], Some(reason))
}

/// As the services are after the answer was written down.
fn carried_out(allocation: &Allocation, mut requests: Vec<Request>) -> Vec<Request> {
    for request in &mut requests {
        if let Some(given) = allocation.services.get(&request.name) {
            request.held.clone_from(&given.addresses);
            request.is_answered = true;
        }
    }
    requests
}

#[test]
fn the_first_free_address_is_given_and_a_full_pool_says_so() {
    let pools = [pool("a", "192.0.2.1", "192.0.2.2")];
    let requests = [request("x"), request("y"), request("z")];

    let allocation = allocate(&pools, true, &requests);

    assert_eq!(of(&allocation, "x"), has("192.0.2.1"));
    assert_eq!(of(&allocation, "y"), has("192.0.2.2"));
    assert_eq!(of(&allocation, "z"), lacks("out_of_ips"));
    let usage = &allocation.pools["a"];
    assert_eq!((usage.total, usage.used), (2, 2));
}

#[test]
fn what_is_held_stays_whoever_is_older() {
    let pools = [pool("a", "192.0.2.1", "192.0.2.9")];
    let mut younger = request("z");
    younger.held = vec!["192.0.2.1".parse().unwrap()];

    let allocation = allocate(&pools, true, &[request("a"), younger]);

    assert_eq!(of(&allocation, "z"), has("192.0.2.1"));
    assert_eq!(of(&allocation, "a"), has("192.0.2.2"));
}

#[test]
fn an_address_that_is_asked_for_is_given_or_the_reason_said() {
    let mut blue = pool("blue", "198.51.100.1", "198.51.100.9");
    let needs = ("color".to_owned(), "blue".to_owned());
    blue.selector.match_labels.extend([needs]);
    let pools = [pool("a", "192.0.2.1", "192.0.2.9"), blue];

    let allocation = allocate(
        &pools,
        true,
        &[
            asking("x", "192.0.2.7"),
            asking("y", "192.0.2.7"),
            asking("nowhere", "203.0.113.1"),
            asking("other", "198.51.100.3"),
        ],
    );

    assert_eq!(of(&allocation, "x"), has("192.0.2.7"));
    assert_eq!(of(&allocation, "y"), lacks("already_allocated"));
    assert_eq!(of(&allocation, "nowhere"), lacks("no_pool"));
    assert_eq!(of(&allocation, "other"), lacks("pool_selector_mismatch"));
}

#[test]
fn services_with_one_key_share_an_address_unless_a_port_is_the_same() {
    let pools = [pool("a", "192.0.2.1", "192.0.2.9")];
    let mut far = sharing("far", "k", 9);
    far.name.namespace = "elsewhere".to_owned();
    let requests = [
        sharing("w", "k", 80),
        sharing("x", "k", 443),
        sharing("y", "k", 80),
        sharing("z", "other", 25),
        far.clone(),
    ];

    let allocation = allocate(&pools, true, &requests);

    assert_eq!(of(&allocation, "w"), has("192.0.2.1"));
    assert_eq!(of(&allocation, "x"), has("192.0.2.1"));
    assert_eq!(of(&allocation, "y"), has("192.0.2.2"));
    assert_eq!(of(&allocation, "z"), has("192.0.2.3"));
    let elsewhere = &allocation.services[&far.name].addresses;
    assert_eq!(elsewhere[0].to_string(), "192.0.2.4", "not asked across");
}

#[test]
fn both_families_come_from_their_pools_and_one_does_where_two_are_only_preferred() {
    let pools = [pool("a", "192.0.2.1", "192.0.2.9")];
    let two = |name: &str, needs_all| Request {
        families: vec![false, true],
        needs_all,
        ..request(name)
    };

    let allocation = allocate(
        &pools,
        true,
        &[two("prefers", false), two("requires", true)],
    );

    assert_eq!(of(&allocation, "prefers"), has("192.0.2.1"));
    assert_eq!(
        of(&allocation, "requires"),
        (vec!["192.0.2.2".to_owned()], Some("no_pool"))
    );
}

#[test]
fn the_younger_of_two_pools_that_overlap_gives_nothing() {
    let mut older = pool("z", "192.0.2.1", "192.0.2.1");
    older.age.0 = Some(jiff::Timestamp::UNIX_EPOCH);
    let mut younger = pool("a", "192.0.2.1", "192.0.2.9");
    younger.age.0 = Some(jiff::Timestamp::MAX);

    let allocation = allocate(&[younger, older], true, &[request("x"), request("y")]);

    assert_eq!(of(&allocation, "x"), has("192.0.2.1"));
    assert_eq!(of(&allocation, "y"), lacks("out_of_ips"));
    assert_eq!(allocation.pools["a"].conflict.as_deref(), Some("z"));
    assert_eq!(allocation.pools["z"].conflict, None);
}

#[test]
fn a_disabled_pool_keeps_what_it_gave_and_one_that_is_gone_takes_it_back() {
    let mut pools = vec![pool("a", "192.0.2.1", "192.0.2.9")];
    let before = allocate(&pools, true, &[request("x")]);
    let mut requests = carried_out(&before, vec![request("x")]);
    requests.push(request("y"));

    pools[0].is_disabled = true;
    let disabled = allocate(&pools, true, &requests);
    assert_eq!(of(&disabled, "x"), has("192.0.2.1"));
    assert_eq!(of(&disabled, "y"), lacks("no_pool"));

    let gone = allocate(&[], true, &requests);
    assert_eq!(of(&gone, "x"), lacks("no_pool"));
}

#[test]
fn an_address_that_somebody_else_gave_is_left_alone() {
    let mut foreign = request("x");
    foreign.held = vec!["203.0.113.7".parse().unwrap()];

    let without = allocate(&[], true, std::slice::from_ref(&foreign));
    assert!(without.services.is_empty());
    let pools = [pool("a", "192.0.2.1", "192.0.2.9")];
    let with = allocate(&pools, true, &[foreign]);
    assert!(with.services.is_empty());
}

#[test]
fn a_pool_that_can_no_longer_be_read_takes_nothing_back() {
    let pools = [pool("a", "192.0.2.1", "192.0.2.9")];
    let before = allocate(&pools, true, &[request("x")]);
    let requests = carried_out(&before, vec![request("x")]);

    let broken = allocate(&[], false, &requests);

    assert_eq!(of(&broken, "x"), has("192.0.2.1"));
}

fn any_request() -> impl Strategy<Value = Request> {
    let ip = || (0_u8..12).prop_map(|last| IpAddr::from([192, 0, 2, last]));
    let ask = prop::option::weighted(0.3, ip());
    let key = prop::option::weighted(0.5, (0..2_i32, 0..3_i32));
    let held = prop::collection::vec(ip(), 0..3);
    (0..20_u8, ask, key, held, any::<bool>()).prop_map(|(id, ask, key, held, is_answered)| {
        let mut made = match key {
            Some((key, port)) => sharing(&id.to_string(), &key.to_string(), port),
            None => request(&id.to_string()),
        };
        made.asked = ask.into_iter().collect();
        made.held = held;
        made.is_answered = is_answered;
        made
    })
}

proptest! {
    /// Whatever services hold before, whoever gave it: nobody has what another has, unless they share; nothing is
    /// outside of the pools; and the next leader, who sees what this one wrote, changes nothing.
    #[test]
    fn no_two_services_have_one_address(
        requests in prop::collection::vec(any_request(), 0..16),
        bounds in prop::collection::vec((0_u8..12, 0_u8..12), 0..3),
    ) {
        let mut names = BTreeSet::new();
        let requests: Vec<_> = requests
            .into_iter()
            .filter(|request| names.insert(request.name.clone()))
            .collect();
        let pools: Vec<_> = bounds.iter().enumerate().map(|(place, (a, b))| {
            let ip = |last: &u8| format!("192.0.2.{last}");
            pool(&place.to_string(), &ip(a.min(b)), &ip(a.max(b)))
        }).collect();

        let allocation = allocate(&pools, true, &requests);

        let find = |name| requests.iter().find(|request| &request.name == name).unwrap();
        for (name, given) in &allocation.services {
            for ip in &given.addresses {
                let mut ranges = pools.iter().flat_map(|pool| &pool.ranges);
                prop_assert!(ranges.any(|range| range.contains(*ip)), "{} of no pool", ip);
                for (other, theirs) in &allocation.services {
                    if other != name && theirs.addresses.contains(ip) {
                        prop_assert!(find(name).shares_with(find(other)), "{}: {} and {}", ip, name, other);
                    }
                }
            }
            let is_whole = given.lack.is_none() || !find(name).asked.is_empty();
            prop_assert!(is_whole || given.addresses.is_empty());
        }
        let later = carried_out(&allocation, requests.clone());
        let again = allocate(&pools, true, &later);
        let addresses = |allocation: &Allocation| -> BTreeMap<_, _> {
            let services = allocation.services.iter();
            services.map(|(name, given)| (name.clone(), given.addresses.clone())).collect()
        };
        prop_assert_eq!(addresses(&again), addresses(&allocation));
    }
}
