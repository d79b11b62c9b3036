//! Asks the web server in the pods, once or without end: whom did it see, and which pod was it?
//!
//! Not for starting it: busybox's `httpd` does what `documents.yaml` says.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::netns::Netns;

const PATIENCE: Duration = Duration::from_secs(5);

/// What the server says: the address that it sees, and the pod that it runs in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub client: String,
    pub pod: String,
}

impl Answer {
    /// Reads `CLIENT POD`.
    pub fn read(text: &str) -> Result<Self> {
        let (client, pod) = text
            .trim()
            .rsplit_once(' ')
            .with_context(|| format!("{text:?} is no answer"))?;
        Ok(Self {
            // A server on a socket for both families sees IPv4 in IPv6's clothes.
            client: client
                .trim_matches(['[', ']'])
                .trim_start_matches("::ffff:")
                .to_owned(),
            pod: pod.to_owned(),
        })
    }
}

/// One connection, one question.
pub fn ask(to: SocketAddr) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /cgi-bin/who HTTP/1.0\r\nHost: {}\r\n\r\n",
        to.ip()
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("reading")?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    ensure!(
        head.split(' ').nth(1) == Some("200"),
        "it answered {text:?}"
    );
    Answer::read(body)
}

/// What became of questions that were asked one after the other.
#[derive(Debug, Default)]
pub struct Account {
    pub asked: usize,
    pub answers: BTreeSet<Answer>,
    pub trouble: Vec<String>,
}

/// Questions without end from a namespace.
pub struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Account>>,
}

impl Asking {
    pub fn start(from: &Netns, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (netns, until) = (Netns::existing(from.name()), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            netns.enter(|| {
                let mut account = Account::default();
                while !until.load(Ordering::Relaxed) {
                    account.asked += 1;
                    match ask(to) {
                        Ok(answer) => drop(account.answers.insert(answer)),
                        Err(error) => account.trouble.push(format!("{error:#}")),
                    }
                    sleep(Duration::from_millis(20));
                }
                account
            })
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Result<Account> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(account) => account,
            Err(_) => anyhow::bail!("the thread that asked has panicked"),
        }
    }
}
