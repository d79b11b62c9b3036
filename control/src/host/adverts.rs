//! Router advertisements on links where BGP peers find each other (RFC 4861 §4.2).
//!
//! They say that somebody is here, and nothing else: their lifetime is 0, so no host takes us for its default
//! gateway, and they carry no prefix.
//!
//! Not for hearing those of others: the kernel does, and `surroundings` asks it.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinHandle;
use tracing::debug;

use super::links::Link;

/// Between advertisements; FRR's default on such links.
const INTERVAL: Duration = Duration::from_secs(10);
/// Between the first three (RFC 4861 §6.2.4 asks for no more than 16 s).
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const FIRST: u32 = 3;
/// All nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The links on which we advertise ourselves.
#[derive(Debug, Default)]
pub struct Adverts {
    /// By index and MAC address.
    running: BTreeMap<(u32, [u8; 6]), Task>,
}

/// Ends when it is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Adverts {
    /// Advertises on these links and on no other; says for which that is not possible.
    pub fn follow<'a>(
        &mut self,
        links: impl Iterator<Item = &'a Link>,
    ) -> Vec<(String, io::Error)> {
        let wanted: BTreeMap<_, _> = links
            .filter(|link| link.is_up)
            .map(|link| ((link.index, link.mac), &link.name))
            .collect();
        self.running.retain(|key, _| wanted.contains_key(key));
        let mut failed = Vec::new();
        for ((index, mac), name) in wanted {
            if self.running.contains_key(&(index, mac)) {
                continue;
            }
            match open(index) {
                Ok(socket) => {
                    let task = tokio::spawn(advertise(socket, index, advertisement(mac)));
                    self.running.insert((index, mac), Task(task));
                }
                Err(error) => failed.push((name.clone(), error)),
            }
        }
        failed
    }
}

async fn advertise(socket: Socket, index: u32, message: [u8; 24]) {
    let all_nodes = SocketAddrV6::new(ALL_NODES, 0, 0, index).into();
    let mut sent = 0;
    loop {
        // A link that is down, or has no address yet, may have one the next time.
        if let Err(error) = socket.send_to(&message, &all_nodes) {
            debug!(index, %error, "no router advertisement");
        } else {
            sent += 1;
        }
        // What comes in is the kernel's to look at; here it would only fill the socket.
        while socket.recv(&mut [MaybeUninit::uninit(); 16]).is_ok() {}
        let wait = if sent < FIRST {
            FIRST_INTERVAL
        } else {
            INTERVAL
        };
        tokio::time::sleep(wait).await;
    }
}

fn open(index: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    // RFC 4861 §6.1.2: one that crossed a router is not taken.
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_recv_buffer_size(4096)?;
    Ok(socket)
}

/// An advertisement of nothing but its sender's MAC address; the kernel writes the checksum.
fn advertisement(mac: [u8; 6]) -> [u8; 24] {
    let mut message = [0; 24];
    message[0] = 134;
    message[16] = 1;
    message[17] = 1;
    message[18..].copy_from_slice(&mac);
    message
}
