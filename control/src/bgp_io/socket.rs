//! TCP sockets with the options that BGP wants: source address, TTL, signature, reuse of the listening
//! port.
//!
//! # Why a listening socket sends 255
//! It answers a peer before it is known which one that is, and a peer with GTSM takes no less. What it
//! answers is a SYN, which says nothing.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use fairlead_bgp::{Distance, Password};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::distance;
use super::signature::sign;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens on a port of IPv4 and of IPv6; on one of them where the host has only that.
///
/// # Errors
/// The port is taken, or neither family is there.
pub(super) fn listen(port: u16) -> io::Result<Vec<TcpListener>> {
    let v4 = listen_on(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?;
    let bound = v4.local_addr()?.port();
    match listen_on(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), bound)) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) if lacks_ipv6(&error) => Ok(vec![v4]),
        Err(error) => Err(error),
    }
}

/// Opens a connection from an address and port; where they are 0, from what the host chooses.
///
/// # Errors
/// As the kernel says: refused, unreachable, timed out; or it cannot sign, and nothing is sent unsigned.
pub(super) async fn dial(
    remote: SocketAddr,
    local: SocketAddr,
    distance: Distance,
    password: Option<&Password>,
) -> io::Result<TcpStream> {
    let socket = tcp(remote)?;
    distance::set(&socket, remote, distance)?;
    if password.is_some() {
        sign(&socket, remote.ip(), password)?;
    }
    if local.port() != 0 {
        // That of a connection which has just ended is free for the next.
        socket.set_reuse_address(true)?;
    }
    if local.port() != 0 || !local.ip().is_unspecified() {
        socket.bind(&local.into())?;
    }
    socket.set_nonblocking(true)?;
    TcpSocket::from_std_stream(socket.into())
        .connect(remote)
        .await
}

/// Prepares an accepted connection.
///
/// # Errors
/// The connection is gone, or began farther away than it may.
pub(super) fn prepare(stream: &TcpStream, distance: Distance) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    distance::set(&SockRef::from(stream), local, distance)?;
    distance::check_syn(stream, distance)
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let any_peer = Distance {
        ttl: Some(u8::MAX),
        least_ttl: None,
    };
    distance::set(&socket, address, any_peer)?;
    distance::keep_syns(&socket)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

pub(super) fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
