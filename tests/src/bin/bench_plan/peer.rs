//! A BGP peer that accepts one session and notes which IPv4 prefixes it has been told.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};

/// Our AS number.
pub const ASN: u16 = 65000;

/// A peer and what it has been told.
pub struct Peer {
    told: Arc<Mutex<BTreeSet<Ipv4Addr>>>,
}

impl Peer {
    /// Waits for sessions at a listener.
    pub fn start(listener: TcpListener) -> Self {
        let told = Arc::new(Mutex::new(BTreeSet::new()));
        let heard = Arc::clone(&told);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A session that ends may come again.
                let _ = session(stream, &heard);
            }
        });
        Self { told }
    }

    /// How many addresses it has been told.
    pub fn count(&self) -> usize {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether it has not been told an address, or no more.
    pub fn has_lost(&self, address: std::net::IpAddr) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match address {
            std::net::IpAddr::V4(v4) => !told.contains(&v4),
            std::net::IpAddr::V6(_) => false,
        }
    }
}

fn session(mut stream: TcpStream, told: &Mutex<BTreeSet<Ipv4Addr>>) -> Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut header = [0; 19];
        stream.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        ensure!(length >= header.len(), "a message shorter than its header");
        let mut body = vec![0; length - header.len()];
        stream.read_exact(&mut body)?;
        match header[18] {
            1 => {
                // RFC 4271 §4.2, with multiprotocol capabilities (RFC 4760 §8) and four-byte AS numbers (RFC 6793).
                let capabilities = [1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 65, 4, 0, 0];
                let mut open = vec![4];
                open.extend(ASN.to_be_bytes());
                open.extend([0, 180, 10, 9, 0, 2]);
                open.extend([
                    capabilities.len() as u8 + 4,
                    2,
                    capabilities.len() as u8 + 2,
                ]);
                open.extend(capabilities);
                open.extend(ASN.to_be_bytes());
                send(&mut stream, 1, &open)?;
                send(&mut stream, 4, &[])?;
            }
            2 => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                let (withdrawn, rest) = part(&body)?;
                let (_, announced) = part(rest)?;
                for address in prefixes(withdrawn) {
                    told.remove(&address);
                }
                told.extend(prefixes(announced));
            }
            4 => send(&mut stream, 4, &[])?,
            _ => return Ok(()),
        }
    }
}

fn send(stream: &mut TcpStream, kind: u8, body: &[u8]) -> Result<()> {
    let mut message = vec![0xff; 16];
    message.extend((19 + body.len() as u16).to_be_bytes());
    message.push(kind);
    message.extend(body);
    Ok(stream.write_all(&message)?)
}

/// What the length before it says, and what follows.
fn part(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    ensure!(bytes.len() >= 2, "an UPDATE ends within a length");
    let (length, rest) = bytes.split_at(2);
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    ensure!(rest.len() >= length, "an UPDATE ends within a part");
    Ok(rest.split_at(length))
}

/// The host routes among the prefixes.
fn prefixes(mut bytes: &[u8]) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    while let [length, rest @ ..] = bytes {
        let (prefix, others) = rest.split_at(usize::from(length.div_ceil(8)).min(rest.len()));
        if let Ok(octets) = <[u8; 4]>::try_from(prefix) {
            found.push(octets.into());
        }
        bytes = others;
    }
    found
}
