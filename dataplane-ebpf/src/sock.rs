//! Services for the sockets of this node: the backend is chosen when a socket names a service, and no packet
//! ever carries the service's address.
//!
//! ```text
//!   connect              service -> slot -> backend, written into the call; kept in SOCKETS
//!   sendmsg, to a name   the backend that this socket has for the service, else as connect; kept in DATAGRAMS
//!   recvmsg, getpeername backend -> the service that the socket asked for
//! ```
//! The slot is drawn, not hashed: there are no packets of the flow that must find it again. So shares follow
//! weights, and a backend that drains gets nothing new. All hooks run with the socket locked.
//!
//! Not for packets of pods whose sockets are out of reach (virtual machines): `lb` balances these. Nor for what
//! pods send to a service that lets in only some sources: which address a pod will use is not known before it
//! sends, so its packets are judged, and balanced, where they leave it.

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::Flow;
use fairlead_common::hash;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Backend, Service, ServiceKey, flags, service_flags};
use fairlead_common::socket::{Client, TRANSLATIONS, Translation, Translations};

use crate::sockaddr::Address;
use crate::{clock, count, maps};

/// How many slots are drawn to find a backend that lives: with half of them dead, one connection in 65,536 is
/// refused.
const DRAWS: u32 = 16;

/// A socket connects, TCP or UDP. `None`: not to a service.
#[inline(always)]
pub fn connect(address: &mut impl Address) -> Option<Reason> {
    let (addr, port, proto) = (address.addr(), address.port(), address.proto());
    let Some(service) = service(address, proto) else {
        // It may have been connected to a service before.
        if let Some(row) = maps::socket(address.context()) {
            row.id = 0;
        }
        return None;
    };
    if !lets_host_in(service, addr.is_v4()) {
        return Some(refused(service, Reason::ServiceSourceDenied));
    }
    let Some((id, backend)) = choose(address, service, addr.is_v4()) else {
        return Some(refused(service, Reason::ServiceSocketRefused));
    };
    let Some(row) = maps::socket_or_new(address.context()) else {
        return Some(Reason::HelperFailed);
    };
    remember(row, (addr, port), id, backend);
    count::connected(service.id, id);
    address.set(row.backend, row.backend_port);
    Some(Reason::ServiceSocket)
}

/// A UDP socket sends to an address that the call names. `None`: not to a service, or to one that this socket
/// has a backend for.
#[inline(always)]
pub fn send(address: &mut impl Address) -> Option<Reason> {
    let (addr, port) = (address.addr(), address.port());
    let Some(service) = service(address, Proto::UDP) else {
        // Answers of this address are its own from now on.
        if let Some(rows) = maps::datagrams(address.context())
            && let Some(place) = place_of_backend(rows, addr, port)
        {
            rows.rows[place & (TRANSLATIONS - 1)].id = 0;
        }
        return None;
    };
    if !lets_host_in(service, addr.is_v4()) {
        return Some(refused(service, Reason::ServiceSourceDenied));
    }
    let Some(rows) = maps::datagrams_or_new(address.context()) else {
        return Some(Reason::HelperFailed);
    };
    let known = place_of_service(rows, addr, port);
    rows.last = known.map_or(rows.written, |place| place as u32);
    if known.is_some() {
        let row = maps::last(rows);
        if is_usable(row) {
            address.set(row.backend, row.backend_port);
            return None;
        }
    }
    let Some((id, backend)) = choose(address, service, addr.is_v4()) else {
        return Some(refused(service, Reason::ServiceSocketRefused));
    };
    if known.is_none() {
        rows.written = rows.written.wrapping_add(1);
    }
    let row = maps::last(rows);
    remember(row, (addr, port), id, backend);
    count::connected(service.id, id);
    address.set(row.backend, row.backend_port);
    Some(Reason::ServiceSocket)
}

/// A UDP socket tells the process whom a datagram is from.
#[inline(always)]
pub fn receive(address: &mut impl Address) {
    let (addr, port) = (address.addr(), address.port());
    if let Some(rows) = maps::datagrams(address.context())
        && let Some(place) = place_of_backend(rows, addr, port)
    {
        let row = &rows.rows[place & (TRANSLATIONS - 1)];
        address.set(row.service, row.service_port);
        return;
    }
    peer(address);
}

/// A connected socket tells the process whom it is connected to.
#[inline(always)]
pub fn peer(address: &mut impl Address) {
    let (addr, port) = (address.addr(), address.port());
    if let Some(row) = maps::socket(address.context())
        && row.is_from(addr, port)
    {
        address.set(row.service, row.service_port);
    }
}

/// The service that the address names. A loopback address names one (node ports) to processes of the host: to
/// a pod it is the pod itself. Node ports of other nodes are known by the number, whichever node it is: one row for
/// all, at the unspecified address.
#[inline(always)]
fn service(address: &impl Address, proto: Proto) -> Option<&'static Service> {
    if proto != Proto::TCP && proto != Proto::UDP {
        return None;
    }
    let addr = address.addr();
    if addr.is_loopback() && maps::node().namespace != address.namespace() {
        return None;
    }
    let mut key = ServiceKey::new(addr, address.port(), proto).inside();
    let service = match maps::service(&key) {
        Some(service) => service,
        None => {
            if !is_node_port(address.port()) || !maps::is_other_node(addr) {
                return None;
            }
            key.addr = if addr.is_v4() {
                Addr::from_v4_word(0)
            } else {
                Addr::NONE
            };
            maps::service(&key)?
        }
    };
    if has_ranges(service) && maps::node().namespace != address.namespace() {
        return None;
    }
    Some(service)
}

/// Whether the port may be one at which all nodes serve: most ports are not, and cost nothing more.
#[inline(always)]
fn is_node_port(port: Port) -> bool {
    let number = port.number();
    let [first, last] = maps::node().node_ports;
    number >= first && number <= last
}

#[inline(always)]
const fn has_ranges(service: &Service) -> bool {
    service.flags & service_flags::SOURCE_RANGES != 0
}

/// Whether a service lets the node itself in: by its address, as kube-proxy has it, whatever the socket is bound to.
#[inline(always)]
fn lets_host_in(service: &Service, is_v4: bool) -> bool {
    if !has_ranges(service) {
        return true;
    }
    let node = maps::node();
    let own = if is_v4 {
        node.tunnel_v4
    } else {
        node.tunnel_v6
    };
    maps::admits(service.id, own)
}

/// The backend of a new connection.
#[inline(always)]
fn choose(
    address: &impl Address,
    service: &Service,
    is_v4: bool,
) -> Option<(u32, &'static Backend)> {
    if service.affinity_s == 0 {
        return draw(service, is_v4);
    }
    let client = Client {
        namespace: address.namespace(),
        service: service.id,
        pad: 0,
    };
    let now_s = clock::now_s();
    if let Some(row) = maps::affinity(&client)
        && now_s.wrapping_sub(row.last_seen_s) < service.affinity_s
        && let Some(backend) = usable(row.backend, is_v4)
    {
        row.last_seen_s = now_s;
        return Some((row.backend, backend));
    }
    let (id, backend) = draw(service, is_v4)?;
    let row = Flow {
        backend: id,
        last_seen_s: now_s,
    };
    maps::remember_affinity(&client, &row);
    Some((id, backend))
}

#[inline(always)]
fn refused(service: &Service, reason: Reason) -> Reason {
    count::refused(service.id, reason);
    reason
}

#[inline(always)]
fn draw(service: &Service, is_v4: bool) -> Option<(u32, &'static Backend)> {
    if service.slots == 0 {
        return None;
    }
    for _ in 0..DRAWS {
        let place = hash::slot(maps::random(), service.slots);
        let id = maps::slot(service.ring.wrapping_add(place))?.current;
        if let Some(backend) = usable(id, is_v4) {
            return Some((id, backend));
        }
    }
    None
}

/// The backend, when it lives and an address of this family can be replaced by its own.
#[inline(always)]
fn usable(id: u32, is_v4: bool) -> Option<&'static Backend> {
    maps::backend(id)
        .filter(|backend| backend.flags & flags::ALIVE != 0 && backend.addr.is_v4() == is_v4)
}

/// Whether the backend lives and its row has not become another one's.
#[inline(always)]
fn is_usable(row: &Translation) -> bool {
    usable(row.id, row.backend.is_v4())
        .is_some_and(|backend| backend.addr == row.backend && backend.port == row.backend_port)
}

/// Word by word: a copy from row to row becomes a loop of bytes.
#[inline(always)]
fn remember(row: &mut Translation, service: (Addr, Port), id: u32, backend: &Backend) {
    (row.service, row.service_port) = service;
    let [first, second] = backend.addr.halves();
    row.backend = Addr::from_v6_halves([first, second]);
    row.backend_port = backend.port;
    row.id = id;
}

#[inline(always)]
fn place_of_service(rows: &Translations, addr: Addr, port: Port) -> Option<usize> {
    (0..TRANSLATIONS)
        .find(|&place| rows.rows[place].service == addr && rows.rows[place].service_port == port)
}

/// The row that shows answers of a backend as a service's: of several services with this backend, the one that
/// was last sent to.
#[inline(always)]
fn place_of_backend(rows: &Translations, addr: Addr, port: Port) -> Option<usize> {
    let last = rows.last as usize & (TRANSLATIONS - 1);
    if rows.rows[last].is_from(addr, port) {
        return Some(last);
    }
    (0..TRANSLATIONS).find(|&place| rows.rows[place].is_from(addr, port))
}
