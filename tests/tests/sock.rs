//! Services for sockets: real sockets in a cgroup of the test's own, and rows as userspace writes them.
//!
//! Every address is one of the node's loopback device: clients and backends are threads of the test.
//!
//! # Size
//! Each hook is asked the same questions with the same sockets; apart, the questions would stand twice.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use fairlead_common::addr::{Port, Proto};
use fairlead_common::reason::Reason;
use fairlead_common::served;
use fairlead_common::service::{
    Service, ServiceKey, Slot, SourceRange, flags, forward, service_flags,
};
use fairlead_common::socket::{Client, TRANSLATIONS};
use fairlead_common::tables::{
    Addresses, Affinity, BackendStats, Backends, NodeTable, ServiceStats, Services, SourceRanges,
};
use fairlead_tests::cgroup::Cgroup;
use fairlead_tests::kernel::{Node, addr_of, on_a_node};
use fairlead_tests::netns::wait_for;
use rstest::rstest;

const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// One family: a service, as sockets name it, and two backends.
#[derive(Clone, Copy)]
struct Family {
    service: &'static str,
    named: &'static str,
    backends: [&'static str; 2],
    any: &'static str,
}

const V4: Family = Family {
    service: "10.96.0.1",
    named: "10.96.0.1",
    backends: ["10.99.0.1", "10.99.0.2"],
    any: "0.0.0.0:0",
};
const V6: Family = Family {
    service: "fd00:96::1",
    named: "fd00:96::1",
    backends: ["fd00:99::1", "fd00:99::2"],
    any: "[::]:0",
};
/// An IPv6 socket that speaks IPv4.
const MAPPED: Family = Family {
    named: "::ffff:10.96.0.1",
    any: "[::]:0",
    ..V4
};

impl Family {
    fn service(self) -> SocketAddr {
        at(self.named, PORT)
    }

    /// A backend as this family's sockets see it.
    fn backend(self, number: usize) -> SocketAddr {
        let ip: IpAddr = self.backends[number].parse().expect("an address");
        match ip {
            IpAddr::V4(v4) if self.any.starts_with('[') => {
                (v4.to_ipv6_mapped(), BACKEND_PORT).into()
            }
            IpAddr::V4(_) | IpAddr::V6(_) => (ip, BACKEND_PORT).into(),
        }
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// A node whose sockets meet the programs.
fn on_a_node_with_sockets(work: impl FnOnce(&mut Node) + Send) {
    on_a_node(|node| {
        let cgroup = Cgroup::enter().expect("a cgroup");
        node.ip("addr add 10.99.0.1/32 dev lo\n\
             addr add 10.99.0.2/32 dev lo\n\
             addr add fd00:99::1/128 dev lo nodad\n\
             addr add fd00:99::2/128 dev lo nodad\n");
        // The kernel adds the routes of IPv6 addresses later.
        wait_for("the way to the backends", 5, || {
            for ip in V6.backends {
                let socket = UdpSocket::bind(at(ip, BACKEND_PORT))?;
                socket.set_nonblocking(true)?;
                socket.send_to(b"here?", at(ip, BACKEND_PORT))?;
                socket.recv(&mut [0; 8])?;
            }
            Ok(Some(()))
        })
        .expect("a way");
        node.attach_sockets(&cgroup);
        work(node);
    });
}

fn backend(node: &mut Node, ip: &str) -> u32 {
    let id = node.backend(ip, forward::HERE);
    change(node, id, |row| row.port = Port::new(BACKEND_PORT));
    id
}

fn change(node: &mut Node, id: u32, change: impl FnOnce(&mut fairlead_common::service::Backend)) {
    let mut row = node.get::<Backends>(&id).expect("a row");
    change(&mut row);
    node.set::<Backends>(&id, &row);
}

fn steady(current: u32) -> Slot {
    Slot {
        current,
        previous: 0,
    }
}

/// A service with the family's backends, each with as many slots as its number in `slots` says.
fn serve(node: &mut Node, family: Family, proto: Proto, slots: [usize; 2]) -> ([u32; 2], Service) {
    let ids = family.backends.map(|ip| backend(node, ip));
    let ring: Vec<Slot> = (0..2)
        .flat_map(|i| vec![steady(ids[i]); slots[i]])
        .collect();
    let row = node.inside_service(family.service, PORT, proto, &ring, 0);
    (ids, row)
}

fn counted(node: &mut Node, reason: Reason) -> u64 {
    node.reasons()[reason as usize].packets
}

/// Answers one TCP connection with the address that the server sees as its own.
fn answer_tcp(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().expect("a connection");
    let own = stream.local_addr().expect("an address").to_string();
    stream.write_all(own.as_bytes()).expect("a peer");
}

fn udp(any: &str) -> UdpSocket {
    let socket = UdpSocket::bind(any).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a time");
    socket
}

fn udp_backends(family: Family) -> [UdpSocket; 2] {
    family.backends.map(|ip| {
        let socket = udp(&at(ip, BACKEND_PORT).to_string());
        socket.set_nonblocking(true).expect("a mode");
        socket
    })
}

/// Which of the backends has a datagram; it is answered.
fn answered_by(backends: &[UdpSocket; 2]) -> usize {
    let mut buffer = [0; 64];
    for _ in 0..1000 {
        for (number, socket) in backends.iter().enumerate() {
            match socket.recv_from(&mut buffer) {
                Ok((length, client)) => {
                    socket.send_to(&buffer[..length], client).expect("a client");
                    return number;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no backend got the datagram");
}

fn received(socket: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 64];
    socket.recv_from(&mut buffer).expect("an answer").1
}

#[rstest]
#[case::ipv4(V4)]
#[case::ipv6(V6)]
#[case::ipv4_by_an_ipv6_socket(MAPPED)]
fn a_tcp_connection_to_a_service_is_one_to_its_backend_and_shows_the_service(
    #[case] family: Family,
) {
    on_a_node_with_sockets(|node| {
        let (ids, row) = serve(node, family, Proto::TCP, [0, 1]);
        let listener = TcpListener::bind(at(family.backends[1], BACKEND_PORT)).expect("a port");

        let mut stream = TcpStream::connect(family.service()).expect("a connection");

        answer_tcp(&listener);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, at(family.backends[1], BACKEND_PORT).to_string());
        assert_eq!(stream.peer_addr().expect("a peer"), family.service());
        assert_eq!(counted(node, Reason::ServiceSocket), 1);
        assert_eq!(node.count::<ServiceStats>(&row.id).new_flows, 1);
        assert_eq!(node.count::<BackendStats>(&ids[1]).new_flows, 1);
    });
}

#[rstest]
#[case::ipv4(V4)]
#[case::ipv6(V6)]
#[case::ipv4_by_an_ipv6_socket(MAPPED)]
fn a_udp_socket_connected_to_a_service_hears_the_service(#[case] family: Family) {
    on_a_node_with_sockets(|node| {
        serve(node, family, Proto::UDP, [0, 1]);
        let backends = udp_backends(family);
        let socket = udp(family.any);

        socket.connect(family.service()).expect("a service");
        socket.send(b"question").expect("a backend");

        assert_eq!(answered_by(&backends), 1);
        assert_eq!(received(&socket), family.service());
        assert_eq!(socket.peer_addr().expect("a peer"), family.service());
    });
}

#[rstest]
#[case::ipv4(V4)]
#[case::ipv6(V6)]
#[case::ipv4_by_an_ipv6_socket(MAPPED)]
fn an_unconnected_udp_socket_keeps_its_backend_and_hears_the_service(#[case] family: Family) {
    on_a_node_with_sockets(|node| {
        serve(node, family, Proto::UDP, [1, 1]);
        let backends = udp_backends(family);
        let socket = udp(family.any);

        let answers: Vec<_> = (0..40)
            .map(|_| {
                socket
                    .send_to(b"question", family.service())
                    .expect("a backend");
                (answered_by(&backends), received(&socket))
            })
            .collect();

        assert_eq!(answers, vec![(answers[0].0, family.service()); 40]);
        // One choice, not forty.
        assert_eq!(counted(node, Reason::ServiceSocket), 1);
    });
}

#[rstest]
#[case::ipv4(V4)]
#[case::ipv6(V6)]
fn an_unconnected_udp_socket_whose_backend_dies_gets_another(#[case] family: Family) {
    on_a_node_with_sockets(|node| {
        let (ids, _) = serve(node, family, Proto::UDP, [1, 1]);
        let backends = udp_backends(family);
        let socket = udp(family.any);
        socket
            .send_to(b"question", family.service())
            .expect("a backend");
        let first = answered_by(&backends);
        received(&socket);

        change(node, ids[first], |row| row.flags &= !flags::ALIVE);
        socket
            .send_to(b"question", family.service())
            .expect("a backend");

        assert_eq!(answered_by(&backends), 1 - first);
        assert_eq!(received(&socket), family.service());
    });
}

#[test]
fn an_unconnected_udp_socket_whose_backends_row_became_another_ones_gets_a_backend_anew() {
    on_a_node_with_sockets(|node| {
        let (ids, _) = serve(node, V4, Proto::UDP, [1, 0]);
        let backends = udp_backends(V4);
        let socket = udp(V4.any);
        socket
            .send_to(b"question", V4.service())
            .expect("a backend");
        assert_eq!(answered_by(&backends), 0);
        received(&socket);

        change(node, ids[0], |row| row.addr = addr_of(V4.backends[1]));
        socket
            .send_to(b"question", V4.service())
            .expect("a backend");

        assert_eq!(answered_by(&backends), 1);
        assert_eq!(received(&socket), V4.service());
    });
}

#[test]
fn of_more_services_than_a_socket_remembers_it_hears_the_last() {
    on_a_node_with_sockets(|node| {
        let service = |number: usize| at(V4.service, 1000 + number as u16);
        let sockets: Vec<_> = (0..=TRANSLATIONS)
            .map(|number| {
                let port = 9000 + number as u16;
                let id = backend(node, V4.backends[0]);
                change(node, id, |row| row.port = Port::new(port));
                let to = service(number).port();
                node.inside_service(V4.service, to, Proto::UDP, &[steady(id)], 0);
                udp(&at(V4.backends[0], port).to_string())
            })
            .collect();
        let socket = udp(V4.any);
        for number in 0..=TRANSLATIONS {
            socket
                .send_to(b"question", service(number))
                .expect("a backend");
        }

        let heard: Vec<_> = sockets
            .iter()
            .map(|backend| {
                let mut buffer = [0; 64];
                let (_, client) = backend.recv_from(&mut buffer).expect("a question");
                backend.send_to(b"answer", client).expect("a client");
                received(&socket)
            })
            .collect();

        assert_eq!(heard[0], at(V4.backends[0], 9000), "forgotten");
        let rest: Vec<_> = (1..=TRANSLATIONS).map(service).collect();
        assert_eq!(heard[1..], rest);
    });
}

#[test]
fn of_two_services_with_one_backend_the_socket_hears_the_one_it_sent_to_last() {
    on_a_node_with_sockets(|node| {
        let id = backend(node, V4.backends[0]);
        let services = [at(V4.service, 80), at(V4.service, 81)];
        for service in services {
            node.inside_service(V4.service, service.port(), Proto::UDP, &[steady(id)], 0);
        }
        let backends = udp_backends(V4);
        let socket = udp(V4.any);

        for service in [services[0], services[1], services[0]] {
            socket.send_to(b"question", service).expect("a backend");
            answered_by(&backends);

            assert_eq!(received(&socket), service);
        }
    });
}

#[test]
fn what_is_sent_to_a_backend_by_its_own_name_is_answered_under_its_own_name() {
    on_a_node_with_sockets(|node| {
        serve(node, V4, Proto::UDP, [1, 0]);
        let backends = udp_backends(V4);
        let (unconnected, connected) = (udp(V4.any), udp(V4.any));
        unconnected
            .send_to(b"question", V4.service())
            .expect("a backend");
        connected.connect(V4.service()).expect("a service");
        answered_by(&backends);
        received(&unconnected);

        unconnected
            .send_to(b"question", V4.backend(0))
            .expect("a backend");
        connected.connect(V4.backend(0)).expect("a backend");

        answered_by(&backends);
        assert_eq!(received(&unconnected), V4.backend(0));
        assert_eq!(connected.peer_addr().expect("a peer"), V4.backend(0));
    });
}

#[rstest]
#[case::ipv4(V4)]
#[case::ipv6(V6)]
#[case::ipv4_by_an_ipv6_socket(MAPPED)]
fn a_service_without_a_backend_refuses_connections(
    #[case] family: Family,
    #[values("no backend", "a dead backend", "a backend of the other family")] has: &str,
) {
    on_a_node_with_sockets(|node| {
        let of_family = backend(node, family.backends[0]);
        let other = if family.service == V4.service { V6 } else { V4 };
        let of_other = backend(node, other.backends[0]);
        change(node, of_family, |row| row.flags = 0);
        let ring: &[Slot] = match has {
            "no backend" => &[],
            "a dead backend" => &[steady(of_family)],
            _ => &[steady(of_other)],
        };
        for proto in [Proto::TCP, Proto::UDP] {
            node.inside_service(family.service, PORT, proto, ring, 0);
        }
        let socket = udp(family.any);

        let refused = [
            TcpStream::connect(family.service()).map(drop),
            socket.send_to(b"question", family.service()).map(drop),
            socket.connect(family.service()),
        ];

        for outcome in refused {
            let error = outcome.expect_err("no service");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        assert_eq!(counted(node, Reason::ServiceSocketRefused), 3);
        assert_eq!(counted(node, Reason::ServiceSocket), 0);
    });
}

#[rstest]
#[case::ipv4(V4, ["10.1.0.0/24", "10.9.0.0/24"])]
#[case::ipv6(V6, ["fd00:1::/64", "fd00:9::/64"])]
#[case::ipv4_by_ipv6(MAPPED, ["10.1.0.0/24", "10.9.0.0/24"])]
fn a_service_with_source_ranges_lets_the_host_in_by_the_nodes_address(
    #[case] family: Family,
    #[case] ranges: [&str; 2],
) {
    let range_of = |service: &Service, text: &str| {
        let (addr, length) = text.split_once('/').expect("a prefix");
        SourceRange::new(service.id, addr_of(addr), length.parse().expect("a length"))
    };
    on_a_node_with_sockets(|node| {
        let (_, service) = serve(node, family, Proto::UDP, [1, 0]);
        node.change_inside(family.service, PORT, Proto::UDP, |row| {
            row.flags = service_flags::SOURCE_RANGES;
        });
        let [own, other] = ranges;
        node.set::<SourceRanges>(&range_of(&service, other), &1);
        let socket = udp(family.any);

        for outcome in [
            socket.connect(family.service()),
            udp(family.any)
                .send_to(b"question", family.service())
                .map(drop),
        ] {
            let error = outcome.expect_err("not let in");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
        assert_eq!(counted(node, Reason::ServiceSourceDenied), 2);

        node.set::<SourceRanges>(&range_of(&service, own), &1);
        socket.connect(family.service()).expect("let in");

        assert_eq!(counted(node, Reason::ServiceSocket), 1);
    });
}

#[test]
fn a_pods_packets_are_judged_where_they_leave_it() {
    on_a_node_with_sockets(|node| {
        serve(node, V4, Proto::UDP, [1, 0]);
        node.change_inside(V4.service, PORT, Proto::UDP, |row| {
            row.flags = service_flags::SOURCE_RANGES;
        });
        // Of another namespace than the node's own.
        node.change(|row| row.namespace += 1);
        let before = node.reasons();
        let socket = udp(V4.any);

        socket.connect(V4.service()).expect("a way");

        assert_eq!(socket.peer_addr().expect("a peer"), V4.service());
        assert_eq!(node.reasons(), before);
    });
}

#[test]
fn what_is_not_a_service_is_not_touched() {
    on_a_node_with_sockets(|node| {
        serve(node, V4, Proto::TCP, [1, 0]);
        // From outside only.
        node.service("10.96.0.9", PORT, Proto::TCP, &[]);
        let listener = TcpListener::bind(at(V4.backends[0], BACKEND_PORT)).expect("a port");
        let before = node.reasons();

        let stream = TcpStream::connect(V4.backend(0)).expect("a connection");
        let socket = udp(V4.any);
        socket.connect(V4.service()).expect("a way");
        socket.connect(at("10.96.0.9", PORT)).expect("a way");

        assert_eq!(stream.peer_addr().expect("a peer"), V4.backend(0));
        assert_eq!(node.reasons(), before);
        drop(listener);
    });
}

/// Connects by UDP, which needs no answer, and counts the backends that were given.
fn given(node: &mut Node, family: Family, connections: u32) -> [u32; 2] {
    let socket = udp(family.any);
    let mut given = [0; 2];
    for _ in 0..connections {
        socket.connect(family.service()).expect("a service");
        let backend = node.kept_by(&socket).backend;
        let number = family.backends.iter().position(|ip| addr_of(ip) == backend);
        given[number.expect("one of two")] += 1;
    }
    given
}

#[rstest]
#[case::ipv4(V4)]
#[case::ipv6(V6)]
fn backends_share_connections_by_their_weights(#[case] family: Family) {
    on_a_node_with_sockets(|node| {
        serve(node, family, Proto::UDP, [750, 250]);

        let given = given(node, family, 4000);

        // One degree of freedom: chance gives more than 19.5 once in a hundred thousand times.
        let squares = [(given[0], 3000.0), (given[1], 1000.0)]
            .map(|(given, share): (u32, f64)| (f64::from(given) - share).powi(2) / share);
        assert!(squares.iter().sum::<f64>() < 19.5, "{given:?}");
    });
}

#[test]
fn backends_that_are_dead_are_skipped() {
    on_a_node_with_sockets(|node| {
        let (ids, _) = serve(node, V4, Proto::UDP, [1, 1]);
        change(node, ids[1], |row| row.flags = 0);

        assert_eq!(given(node, V4, 200), [200, 0]);
        assert_eq!(counted(node, Reason::ServiceSocketRefused), 0);
    });
}

#[test]
fn a_slot_in_transition_gives_its_new_backend() {
    on_a_node_with_sockets(|node| {
        let ids = V4.backends.map(|ip| backend(node, ip));
        let slot = Slot {
            current: ids[1],
            previous: ids[0],
        };
        node.inside_service(V4.service, PORT, Proto::UDP, &[slot], 0);

        assert_eq!(given(node, V4, 20), [0, 20]);
    });
}

#[rstest]
#[case::ipv4("127.0.0.1")]
#[case::ipv6("::1")]
fn a_loopback_address_is_a_service_to_the_host_and_never_to_a_pod(#[case] loopback: &str) {
    on_a_node_with_sockets(|node| {
        let family = if loopback == "::1" { V6 } else { V4 };
        let id = backend(node, family.backends[0]);
        node.inside_service(loopback, 30080, Proto::UDP, &[steady(id)], 0);
        let node_port = at(loopback, 30080);
        let socket = udp(family.any);

        socket.connect(node_port).expect("a service");
        assert_eq!(node.kept_by(&socket).backend, addr_of(family.backends[0]));

        let of_the_host = node.get::<NodeTable>(&0).expect("a row").namespace;
        node.change(|row| row.namespace = of_the_host + 1);
        let socket = udp(family.any);
        socket.connect(node_port).expect("a way");
        assert_eq!(counted(node, Reason::ServiceSocket), 1);
    });
}

#[rstest]
#[case::ipv4(V4, "0.0.0.0", "10.98.0.7")]
#[case::ipv6(V6, "::", "fd00:98::7")]
fn a_node_port_is_a_service_at_every_other_node_and_nowhere_else(
    #[case] family: Family,
    #[case] any: &str,
    #[case] other_node: &str,
) {
    on_a_node_with_sockets(|node| {
        let id = backend(node, family.backends[0]);
        node.inside_service(any, 30080, Proto::UDP, &[steady(id)], 0);
        node.change(|row| row.node_ports = [30000, 30080]);
        node.ip(&format!("route add local {other_node} dev lo\n"));
        let connect = |node: &mut Node, port| {
            let socket = udp(family.any);
            socket.connect(at(other_node, port)).expect("a way");
            socket.peer_addr().expect("a peer");
            counted(node, Reason::ServiceSocket)
        };

        assert_eq!(connect(node, 30080), 0, "it is no node's");
        node.set::<Addresses>(&addr_of(other_node), &served::flags::NODE);
        assert_eq!(connect(node, 30080), 1);
        assert_eq!(connect(node, 30079), 1, "no service has this port");
        node.change(|row| row.node_ports = [30000, 30079]);
        assert_eq!(connect(node, 30080), 1, "the node's row rules it out");

        let socket = udp(family.any);
        node.change(|row| row.node_ports = [30080, 30080]);
        socket.connect(at(other_node, 30080)).expect("a way");
        assert_eq!(node.kept_by(&socket).backend, addr_of(family.backends[0]));
        assert_eq!(socket.peer_addr().expect("a peer"), at(other_node, 30080));
    });
}

/// How long clients stay, in seconds.
const TIMEOUT_S: u32 = 100;

/// Gives a service session affinity; returns the key of the one client there is.
fn stick(node: &mut Node, family: Family, row: Service) -> Client {
    let key = ServiceKey::new(addr_of(family.service), Port::new(PORT), Proto::UDP);
    let row = Service {
        affinity_s: TIMEOUT_S,
        ..row
    };
    node.set::<Services>(&key.inside(), &row);
    given(node, family, 1);
    let [(client, _)] = node.rows::<Affinity>()[..] else {
        panic!("one client");
    };
    assert_eq!(client.service, row.id);
    client
}

/// Makes a client's last connection so much older.
fn age(node: &mut Node, client: &Client, seconds: u32) {
    let mut row = node.get::<Affinity>(client).expect("a row");
    row.last_seen_s = row.last_seen_s.wrapping_sub(seconds);
    node.set::<Affinity>(client, &row);
}

#[rstest]
#[case::ipv4(V4)]
#[case::ipv6(V6)]
fn a_client_stays_with_its_backend_as_long_as_it_comes_back_in_time(#[case] family: Family) {
    on_a_node_with_sockets(|node| {
        let (ids, row) = serve(node, family, Proto::UDP, [1, 1]);
        let client = stick(node, family, row);
        let stays = node.get::<Affinity>(&client).expect("a row").backend;

        for _ in 0..20 {
            age(node, &client, TIMEOUT_S - 2);

            let mut all = [0; 2];
            all[usize::from(stays == ids[1])] = 1;
            assert_eq!(given(node, family, 1), all);
        }
        age(node, &client, TIMEOUT_S);
        let moved = (0..40).any(|_| {
            age(node, &client, TIMEOUT_S);
            given(node, family, 1);
            node.get::<Affinity>(&client).expect("a row").backend != stays
        });
        assert!(moved, "a client that was away is given any backend");
    });
}

#[test]
fn a_client_whose_backend_dies_stays_with_the_next() {
    on_a_node_with_sockets(|node| {
        let (ids, row) = serve(node, V4, Proto::UDP, [1, 1]);
        let client = stick(node, V4, row);
        let first = node.get::<Affinity>(&client).expect("a row").backend;
        change(node, first, |row| row.flags = 0);
        given(node, V4, 1);
        change(node, first, |row| row.flags = flags::ALIVE);

        let given = given(node, V4, 20);

        assert_eq!(given[usize::from(first == ids[0])], 20, "{given:?}");
    });
}
