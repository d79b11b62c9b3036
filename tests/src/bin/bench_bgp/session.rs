//! The two ends: as little of BGP as it takes to send a table and to count one.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};

use super::load::Load;

const KEEPALIVE: [u8; 19] = {
    let mut message = [0xFF; 19];
    message[16] = 0;
    message[17] = 19;
    message[18] = 4;
    message
};
/// How long a speaker may take to be ready for a session.
const READY: Duration = Duration::from_secs(40);

/// An established session.
pub struct Session {
    stream: TcpStream,
}

impl Session {
    /// Dials from an address until the speaker lets us in.
    pub fn establish(own: IpAddr, speaker: SocketAddr, asn: u32) -> Result<Self> {
        let begin = Instant::now();
        loop {
            match Self::dial(own, speaker, asn) {
                Ok(stream) => return Ok(Self { stream }),
                Err(error) if begin.elapsed() > READY => {
                    return Err(error).context("no session");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn dial(own: IpAddr, speaker: SocketAddr, asn: u32) -> Result<TcpStream> {
        let family = match own {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let at = |address: SocketAddr| SockaddrStorage::from(address);
        socket::bind(socket.as_raw_fd(), &at(SocketAddr::new(own, 0)))?;
        socket::connect(socket.as_raw_fd(), &at(speaker))?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&open(asn, own))?;
        ensure!(message(&mut stream)?.0 == 1, "no OPEN");
        stream.write_all(&KEEPALIVE)?;
        ensure!(message(&mut stream)?.0 == 4, "no KEEPALIVE");
        stream.set_read_timeout(None)?;
        Ok(stream)
    }

    /// Reads what comes on a thread of its own and forgets it.
    pub fn discard_what_comes(&self) -> Result<()> {
        let mut stream = self.stream.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while stream.read(&mut buffer).is_ok_and(|octets| octets > 0) {}
        });
        Ok(())
    }

    /// Another handle of its connection.
    pub fn line(&self) -> Result<TcpStream> {
        Ok(self.stream.try_clone()?)
    }

    /// Writes messages.
    pub fn write(&mut self, messages: &[u8]) -> Result<()> {
        self.stream.write_all(messages)?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Its other half may be reading.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Counts prefixes on a thread of its own.
pub struct Monitor {
    session: Session,
    seen: Arc<AtomicU32>,
}

impl Monitor {
    /// Counts until all are there, and tells when that was.
    pub fn start(session: Session, load: &Load, done: Sender<Instant>) -> Result<Self> {
        let mut stream = session.stream.try_clone()?;
        let seen = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&seen);
        let (prefixes, ipv6) = (load.prefixes, load.ipv6);
        std::thread::spawn(move || {
            let mut held = vec![false; 1 << 20];
            let mut count = 0_u32;
            let mut inbox = Vec::new();
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(octets) = stream.read(&mut buffer)
                && octets > 0
            {
                inbox.extend_from_slice(&buffer[..octets]);
                let mut at = 0;
                while let Some(length) = inbox.get(at + 16..at + 18) {
                    let end = at + usize::from(u16::from_be_bytes([length[0], length[1]]));
                    let Some(whole) = inbox.get(at..end) else {
                        break;
                    };
                    if whole[18] == 2 {
                        each_prefix(&whole[19..], ipv6, |index| {
                            count += u32::from(!std::mem::replace(&mut held[index], true));
                        });
                    }
                    at = end;
                }
                inbox.drain(..at);
                counter.store(count, Ordering::Relaxed);
                if count == prefixes {
                    // Whoever waited may have given up.
                    let _ = done.send(Instant::now());
                    return;
                }
            }
        });
        Ok(Self { session, seen })
    }

    /// How many prefixes it holds.
    pub fn seen(&self) -> u32 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Tells the speaker that it lives.
    pub fn keep_alive(&self) -> Result<()> {
        (&self.session.stream).write_all(&KEEPALIVE)?;
        Ok(())
    }
}

/// Calls back with the place in the table of each prefix that an UPDATE announces.
fn each_prefix(body: &[u8], ipv6: bool, mut found: impl FnMut(usize)) {
    let length = |at: usize| usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    let attributes = 2 + length(0);
    let mut nlri = attributes + 2 + length(attributes)..body.len();
    if ipv6 {
        let Some(reach) = reach_of(&body[attributes + 2..nlri.start], attributes + 2) else {
            return;
        };
        nlri = reach;
    }
    let mut rest = &body[nlri];
    let octets = if ipv6 { 6 } else { 3 };
    while let [bits, after @ ..] = rest {
        let taken = usize::from(bits.div_ceil(8));
        if taken == octets {
            let tail = &after[octets - 3..octets];
            let index = usize::from(tail[0] & 0x0F) << 16
                | usize::from(tail[1]) << 8
                | usize::from(tail[2]);
            found(index);
        }
        rest = &after[taken..];
    }
}

/// Where in an UPDATE the prefixes of MP_REACH_NLRI are.
fn reach_of(attributes: &[u8], offset: usize) -> Option<std::ops::Range<usize>> {
    let mut at = 0;
    while let Some(&[flags, kind, short]) = attributes.get(at..at + 3) {
        let (head, length) = if flags & 0x10 == 0 {
            (3, usize::from(short))
        } else {
            (
                4,
                usize::from(u16::from_be_bytes([short, *attributes.get(at + 3)?])),
            )
        };
        let value = at + head;
        if kind == 14 {
            let next_hop = usize::from(*attributes.get(value + 3)?);
            return Some(offset + value + 5 + next_hop..offset + value + length);
        }
        at = value + length;
    }
    None
}

/// OPEN: both families, AS numbers of four octets, a hold time of 240 s.
fn open(asn: u32, own: IpAddr) -> Vec<u8> {
    let mut capabilities = vec![1, 4, 0, if own.is_ipv6() { 2 } else { 1 }, 0, 1, 65, 4];
    capabilities.extend_from_slice(&asn.to_be_bytes());
    let mut body = vec![4];
    body.extend_from_slice(&u16::try_from(asn).unwrap_or(23456).to_be_bytes());
    body.extend_from_slice(&240_u16.to_be_bytes());
    // An identifier of its own: that of an IPv4 address is unique here.
    let identifier = match own {
        IpAddr::V4(address) => u32::from(address),
        IpAddr::V6(_) => asn,
    };
    body.extend_from_slice(&identifier.to_be_bytes());
    let length = u8::try_from(capabilities.len()).unwrap_or(0);
    body.extend_from_slice(&[length + 2, 2, length]);
    body.extend_from_slice(&capabilities);
    let mut message = vec![0xFF; 16];
    message.extend_from_slice(&u16::try_from(19 + body.len()).unwrap_or(0).to_be_bytes());
    message.push(1);
    message.extend_from_slice(&body);
    message
}

/// The next message: its type and its body.
fn message(stream: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut header = [0; 19];
    stream.read_exact(&mut header)?;
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let Some(rest) = length.checked_sub(19) else {
        bail!("a message of {length} octets");
    };
    let mut body = vec![0; rest];
    stream.read_exact(&mut body)?;
    Ok((header[18], body))
}
