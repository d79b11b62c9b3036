//! Traffic that goes on while something happens, and the account of it: what was asked, what was
//! answered, by whom, and under which address.
//!
//! [`Steady`] sends datagrams (each answered or lost), requests (a connection each), transfers (one
//! connection, every byte compared) and pings; an [`super::echo::Echo`] answers.
//!
//! Not for a request or two: [`super::traffic`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;

/// Between two datagrams, so that there are about 300 in a second.
const PACE: Duration = Duration::from_millis(3);
/// How long the last answers may take.
const LAST: Duration = Duration::from_millis(500);
/// No answer on a connection for this long: it is broken. Longer than a few retransmissions, so that
/// a packet that is lost is counted among the datagrams, not here.
const BROKEN: Duration = Duration::from_secs(5);
/// What a transfer sends before it waits for the echo: no queue of a veth pair (256 packets) overflows.
pub(super) const BLOCK: usize = 16 << 10;

/// What became of one stream of questions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Which.
    pub what: String,
    /// How many questions were asked.
    pub asked: u64,
    /// How many of them were answered.
    pub answered: u64,
    /// Who answered, and whom they saw. A stream that keeps its backend and its translation has one.
    pub witnesses: BTreeSet<String>,
    /// What broke.
    pub trouble: Vec<String>,
}

impl Account {
    /// Whether everything that was asked was answered, and enough was asked to tell.
    pub fn is_whole(&self, least: u64) -> bool {
        self.trouble.is_empty() && self.asked == self.answered && self.asked >= least
    }
}

/// Streams of questions from inside namespaces.
#[derive(Debug, Default)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Account>>>>,
    pings: Vec<Pings>,
}

/// A running `ping` and what it says.
#[derive(Debug)]
struct Pings {
    what: String,
    child: Child,
    said: File,
}

impl Steady {
    /// Sends datagrams by several sockets in turn, about 300 in a second together.
    pub fn datagrams(&mut self, from: &Netns, to: SocketAddr, flows: usize) -> Result<()> {
        let sockets = from.enter(|| {
            (0..flows)
                .map(|_| {
                    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(any)?;
                    socket.connect(to)?;
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                })
                .collect::<Result<Vec<_>>>()
        })??;
        let what = format!("datagrams from {} to {to}", from.name());
        let stop = self.stop.clone();
        self.threads
            .push(std::thread::spawn(move || Ok(ask(&sockets, &what, &stop))));
        Ok(())
    }

    /// Opens a connection after the other, each with one question.
    pub fn requests(&mut self, from: &Netns, to: SocketAddr) -> Result<()> {
        let (stop, netns) = (self.stop.clone(), Netns::existing(from.name()));
        let what = format!("requests from {} to {to}", from.name());
        self.threads.push(std::thread::spawn(move || {
            let mut account = Account {
                what,
                ..Account::default()
            };
            netns.enter(|| {
                while !stop.load(Ordering::Relaxed) {
                    account.asked += 1;
                    match connect(to).and_then(|(mut stream, who)| {
                        exchange(&mut stream, 0, 64)?;
                        Ok(who)
                    }) {
                        Ok(who) => {
                            account.answered += 1;
                            let name = who.split(' ').next().unwrap_or_default();
                            account.witnesses.insert(name.to_owned());
                        }
                        Err(error) => account.trouble.push(format!("{error:#}")),
                    }
                    sleep(Duration::from_millis(5));
                }
            })?;
            Ok(vec![account])
        }));
        Ok(())
    }

    /// Sends block after block on one connection and compares what comes back.
    pub fn transfer(&mut self, from: &Netns, to: SocketAddr) -> Result<()> {
        let (mut stream, who) = from.enter(|| connect(to))??;
        let what = format!("a transfer from {} to {to}", from.name());
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            let mut account = Account {
                what,
                witnesses: BTreeSet::from([who]),
                ..Account::default()
            };
            while !stop.load(Ordering::Relaxed) {
                account.asked += 1;
                if let Err(error) = exchange(&mut stream, account.asked, BLOCK) {
                    account.trouble.push(format!("{error:#}"));
                    break;
                }
                account.answered += 1;
            }
            Ok(vec![account])
        }));
        Ok(())
    }

    /// Pings a hundred times in a second.
    pub fn pings(&mut self, from: &Netns, to: &str) -> Result<()> {
        // A file, not a pipe that fills up.
        let said = tempfile::tempfile()?;
        let child = from
            .command("ping")
            .args(["-i", "0.01", to])
            .stdout(said.try_clone()?)
            .stderr(Stdio::null())
            .spawn()
            .context("starting ping")?;
        self.pings.push(Pings {
            what: format!("pings from {} to {to}", from.name()),
            child,
            said,
        });
        Ok(())
    }

    /// Ends all streams, waits for the last answers, and tells.
    pub fn end(mut self) -> Result<Vec<Account>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut accounts = Vec::new();
        for pings in self.pings.drain(..) {
            accounts.push(pings.end()?);
        }
        for thread in self.threads.drain(..) {
            let ended = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            accounts.extend(ended?);
        }
        Ok(accounts)
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for pings in &mut self.pings {
            // It may have ended by itself.
            let _ = pings.child.kill();
            let _ = pings.child.wait();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn ask(sockets: &[UdpSocket], what: &str, stop: &AtomicBool) -> Vec<Account> {
    let mut accounts: Vec<Account> = (0..sockets.len())
        .map(|flow| Account {
            what: format!("{what} #{flow}"),
            ..Account::default()
        })
        .collect();
    let mut missing = vec![BTreeSet::new(); sockets.len()];
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let flow = turn % sockets.len();
        let account = &mut accounts[flow];
        account.asked += 1;
        missing[flow].insert(account.asked);
        if let Err(error) = sockets[flow].send(account.asked.to_string().as_bytes()) {
            account
                .trouble
                .push(format!("sending {}: {error}", account.asked));
        }
        turn += 1;
        sleep(PACE);
        collect(sockets, &mut accounts, &mut missing);
    }
    let mut waited = Duration::ZERO;
    while waited < LAST && missing.iter().any(|missing| !missing.is_empty()) {
        sleep(PACE);
        waited += PACE;
        collect(sockets, &mut accounts, &mut missing);
    }
    for (account, missing) in accounts.iter_mut().zip(missing) {
        if !missing.is_empty() {
            account.trouble.push(format!("no answer to {missing:?}"));
        }
    }
    accounts
}

fn collect(sockets: &[UdpSocket], accounts: &mut [Account], missing: &mut [BTreeSet<u64>]) {
    let mut bytes = [0; 512];
    for ((socket, account), missing) in sockets.iter().zip(accounts).zip(missing) {
        loop {
            match socket.recv(&mut bytes) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&bytes[..length]);
                    let (number, who) = text.split_once(' ').unwrap_or_default();
                    if number.parse().is_ok_and(|number| missing.remove(&number)) {
                        account.answered += 1;
                    } else {
                        account.trouble.push(format!("an answer too many: {text}"));
                    }
                    account.witnesses.insert(who.to_owned());
                }
                Err(error) if is_timeout(&error) => break,
                Err(error) => {
                    account.trouble.push(format!("receiving: {error}"));
                    break;
                }
            }
        }
    }
}

/// A connection, and who answers it.
fn connect(to: SocketAddr) -> Result<(TcpStream, String)> {
    let stream = TcpStream::connect_timeout(&to, BROKEN).context("connecting")?;
    stream.set_read_timeout(Some(BROKEN))?;
    stream.set_write_timeout(Some(BROKEN))?;
    let mut who = String::new();
    // Nothing else is sent before a question: the reader holds no byte of an answer back.
    BufReader::new(&stream)
        .read_line(&mut who)
        .context("waiting for who answers")?;
    ensure!(!who.is_empty(), "closed before it was answered");
    Ok((stream, who.trim_end().to_owned()))
}

fn exchange(stream: &mut TcpStream, seed: u64, length: usize) -> Result<()> {
    let sent: Vec<u8> = (0..length as u64)
        .map(|place| (place.wrapping_mul(31).wrapping_add(seed) % 251) as u8)
        .collect();
    stream.write_all(&sent).context("sending")?;
    let mut got = vec![0; length];
    stream
        .read_exact(&mut got)
        .context("waiting for the echo")?;
    ensure!(got == sent, "other bytes came back");
    Ok(())
}

impl Pings {
    fn end(mut self) -> Result<Account> {
        // SIGINT makes ping tell.
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id().cast_signed()),
            nix::sys::signal::Signal::SIGINT,
        )?;
        self.child.wait()?;
        let mut text = String::new();
        self.said.seek(SeekFrom::Start(0))?;
        self.said.read_to_string(&mut text)?;
        let asked = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .and_then(|line| line.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("ping said {text:?}"))?;
        let answered: BTreeSet<u64> = text
            .lines()
            .filter_map(|line| {
                line.split_once("icmp_seq=")?
                    .1
                    .split(' ')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        let mut account = Account {
            what: self.what,
            asked,
            answered: answered.len() as u64,
            ..Account::default()
        };
        // The last one was on its way when ping was ended.
        if !answered.contains(&asked) {
            account.asked -= 1;
        }
        let lost: Vec<_> = (1..=account.asked)
            .filter(|seq| !answered.contains(seq))
            .collect();
        if !lost.is_empty() || text.contains("DUP!") || text.contains("From ") {
            account
                .trouble
                .push(format!("lost {lost:?} of {}", account.asked));
        }
        Ok(account)
    }
}

pub(super) fn is_timeout(error: &std::io::Error) -> bool {
    [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind())
}
