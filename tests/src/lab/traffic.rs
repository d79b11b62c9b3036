//! Real HTTP between namespaces: a server that says who it is and whom it saw, and its client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::binary;
use crate::netns::{Netns, wait_for};
use crate::process::Process;

/// The demonstration's hidden verb that runs [`answer_forever`].
pub const SERVE: &str = "internal-serve";

/// Starts a server inside a namespace on every address.
pub fn serve(netns: &Netns, name: &str, port: u16, log: &Path) -> Result<Process> {
    let mut command = netns.command(binary("demo")?);
    command.args([SERVE, name, &port.to_string()]);
    let mut server = Process::start(&mut command, log)?;
    let address = SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), port);
    wait_for(&format!("the server {name}"), 5, || {
        if let Some(status) = server.ended()? {
            return Ok(Some(Err(anyhow!(
                "it ended with {status}: {}",
                server.printed()
            ))));
        }
        netns.enter(|| TcpStream::connect(address).ok().map(Ok))
    })??;
    Ok(server)
}

/// Answers each connection with its own name and the client's address, until killed.
pub fn answer_forever(name: &str, port: u16) -> Result<()> {
    let listener = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("listening on port {port}"))?;
    loop {
        let (stream, remote) = listener.accept().context("accepting a connection")?;
        // A client that goes away early is its own business.
        let _ = answer(stream, remote, name);
    }
}

fn answer(mut stream: TcpStream, remote: SocketAddr, name: &str) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let address = remote.ip().to_canonical();
    let body = json!({
        "server": name,
        "address": stream.local_addr()?.ip().to_canonical().to_string(),
        "remoteAddr": SocketAddr::new(address, remote.port()).to_string(),
    });
    let body = format!("{body}\n");
    // In one piece: each write would be a segment of its own.
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes())?;
    Ok(())
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answered.
    pub server: String,
    /// The client's address as the server saw it.
    pub seen: IpAddr,
}

/// Asks once from inside a namespace, over a connection of its own.
///
/// # Errors
/// No connection or no answer within two seconds.
pub fn fetch(netns: &Netns, address: &str, port: u16) -> Result<Answer> {
    let address = SocketAddr::new(address.parse()?, port);
    netns.enter(|| request(address))?
}

fn request(address: SocketAddr) -> Result<Answer> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    let question = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .context("reading the answer")?;
    ensure!(
        text.starts_with("HTTP/1.1 200"),
        "{address} answered {text:?}"
    );
    let (_, body) = text
        .split_once("\r\n\r\n")
        .context("an answer without a body")?;
    let body: Value = serde_json::from_str(body)?;
    let field = |name: &str| {
        body[name]
            .as_str()
            .with_context(|| format!("no {name} in {body}"))
    };
    Ok(Answer {
        server: field("server")?.to_owned(),
        seen: field("remoteAddr")?.parse::<SocketAddr>()?.ip(),
    })
}

/// Asks `count` times and tells how often each server answered, and every address they saw.
pub fn fetch_many(
    netns: &Netns,
    address: &str,
    port: u16,
    count: usize,
) -> Result<(BTreeMap<String, usize>, Vec<IpAddr>)> {
    let mut servers = BTreeMap::new();
    let mut seen = Vec::new();
    for _ in 0..count {
        let answer = fetch(netns, address, port)?;
        *servers.entry(answer.server).or_insert(0) += 1;
        seen.push(answer.seen);
    }
    seen.sort_unstable();
    seen.dedup();
    Ok((servers, seen))
}
