//! UDP sockets as BFD wants them: TTL 255 out, TTL and destination seen in, a port of its own for each
//! session (RFC 5881 §4 and §5, RFC 5883 §5).

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use fairlead_bgp::bfd::{Arrived, Hops, Key, Transmit};
use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{debug, warn};

/// The source ports that RFC 5881 §4 allows.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;
const TTL: u8 = 255;
/// Network control (CS6), so that a full link drops these packets last.
const TRAFFIC_CLASS: u32 = 0xC0;
/// Longer than a packet with the longest authentication there is.
const LONGEST: usize = 128;

/// Where packets come in.
pub(super) struct Incoming {
    sockets: Vec<(Hops, Socket)>,
    /// The socket that is read from.
    at: usize,
    buffer: [u8; LONGEST],
}

impl Incoming {
    /// Takes both ports of both families; of one family where the host has only that.
    pub(super) fn open() -> io::Result<Self> {
        let mut sockets = Vec::new();
        for hops in [Hops::Single, Hops::Multi] {
            for any in [
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            ] {
                let address = SocketAddr::new(any, hops.port());
                match listen(address) {
                    Ok(socket) => sockets.push((hops, socket)),
                    Err(error) if super::super::socket::lacks_ipv6(&error) && any.is_ipv6() => {}
                    Err(error) => {
                        let why = format!("UDP port {}: {error}", hops.port());
                        return Err(io::Error::new(error.kind(), why));
                    }
                }
            }
        }
        Ok(Self {
            sockets,
            at: 0,
            buffer: [0; LONGEST],
        })
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|(_, socket)| socket.as_fd())
    }

    /// A packet that has arrived; `None`: there is none on any socket.
    pub(super) fn next(&mut self) -> Option<(Arrived, &[u8])> {
        while let Some((hops, socket)) = self.sockets.get(self.at) {
            match receive(socket, *hops, &mut self.buffer) {
                Ok(Some((arrived, length))) => {
                    return Some((arrived, self.buffer.get(..length).unwrap_or_default()));
                }
                // Without its TTL a packet says nothing.
                Ok(None) => {}
                Err(_) => self.at += 1,
            }
        }
        self.at = 0;
        None
    }
}

/// Where packets go out: a socket per session.
#[derive(Default)]
pub(super) struct Outgoing {
    sockets: BTreeMap<Key, Socket>,
    next_port: u16,
}

impl Outgoing {
    /// Sends a packet; one that cannot be sent is lost, as others are.
    pub(super) fn send(&mut self, transmit: &Transmit) {
        let key = transmit.key;
        if !self.sockets.contains_key(&key) {
            match self.open(key) {
                Ok(socket) => {
                    self.sockets.insert(key, socket);
                }
                Err(error) => {
                    warn!(session = %key, %error, "no socket for a BFD session");
                    return;
                }
            }
        }
        let to = SocketAddr::new(key.peer, key.hops.port());
        if let Some(socket) = self.sockets.get(&key)
            && let Err(error) = socket.send_to(&transmit.bytes, &to.into())
        {
            debug!(session = %key, %error, "a BFD packet could not be sent");
        }
    }

    /// Closes the sockets of sessions that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Key) -> bool) {
        self.sockets.retain(|key, _| is_there(key));
    }

    fn open(&mut self, key: Key) -> io::Result<Socket> {
        let local = key.local.unwrap_or(match key.peer {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        let socket = udp(local)?;
        for _ in SOURCE_PORTS {
            let port = self.next_port.max(*SOURCE_PORTS.start());
            self.next_port = port.checked_add(1).unwrap_or(*SOURCE_PORTS.start());
            match socket.bind(&SocketAddr::new(local, port).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    // Nobody reads what comes to it.
                    socket.set_recv_buffer_size(0)?;
                    return Ok(socket);
                }
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

fn udp(address: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv4() {
        socket.set_ttl_v4(TTL.into())?;
        socket.set_tos_v4(TRAFFIC_CLASS)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(TTL.into())?;
        socket.set_tclass_v6(TRAFFIC_CLASS)?;
    }
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = udp(address.ip())?;
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// One packet and its length; `None`: one whose TTL or addresses are not known.
fn receive(
    socket: &Socket,
    hops: Hops,
    buffer: &mut [u8],
) -> nix::Result<Option<(Arrived, usize)>> {
    let mut control = cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let from = message.address.as_ref().and_then(address);
    let (mut ttl, mut to) = (None, None);
    for part in message.cmsgs()? {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "only what was asked for comes"
        )]
        match part {
            ControlMessageOwned::Ipv4Ttl(number) | ControlMessageOwned::Ipv6HopLimit(number) => {
                ttl = u8::try_from(number).ok();
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                to = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
            }
            _ => {}
        }
    }
    let (Some(from), Some(to), Some(ttl)) = (from, to, ttl) else {
        return Ok(None);
    };
    let arrived = Arrived {
        from,
        to,
        hops,
        ttl,
    };
    Ok(Some((arrived, message.bytes)))
}

fn address(storage: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    storage.as_sockaddr_in6().map(|v6| v6.ip().into())
}
