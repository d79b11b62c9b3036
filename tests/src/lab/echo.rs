//! A service that repeats what it is sent and says whom it saw, over TCP and UDP: servers inside
//! namespaces, and the documents that balance them.
//!
//! Over TCP the first line is `NAME SEEN`, then comes what was sent; a datagram comes back with both
//! behind it.
//!
//! Not for who asks: [`super::steady`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result};

use super::steady::{BLOCK, is_timeout};
use super::{Lab, OUTSIDE, Plan, SERVICE};
use crate::netns::{Netns, wait_for};

/// Its port.
pub const PORT: u16 = 7;
/// How often a server looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);
/// The largest datagram that is answered.
const DATAGRAM: usize = 8192;

/// An address with the service's port.
///
/// # Errors
/// The text is no address.
pub fn at(address: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, PORT))
}

/// What the servers are to their nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// Hosts without an agent, which carry the service's addresses.
    Hosts,
    /// Pods: their nodes translate for them.
    Pods,
}

/// A second service at the same addresses: TCP and UDP echo.
pub fn service(servers: Servers) -> String {
    let [v4, v6] = SERVICE;
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: echo, labels: {{announce: bgp}}}}\nspec:\n  \
         type: LoadBalancer\n  ports:\n  - {{name: tcp, port: {PORT}, protocol: TCP}}\n  \
         - {{name: udp, port: {PORT}, protocol: UDP}}\nstatus:\n  loadBalancer: {{ingress: [{{ip: {v4}}}, \
         {{ip: '{v6}'}}]}}\n"
    );
    for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let endpoints = [Plan(1), Plan(2)].map(|plan| {
            let node = match servers {
                Servers::Hosts => String::new(),
                Servers::Pods => format!("nodeName: {}, ", plan.name()),
            };
            let address = &plan.web()[family];
            format!("- {{addresses: ['{address}'], {node}conditions: {{ready: true}}}}\n")
        });
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: echo-{}\n  \
             labels: {{kubernetes.io/service-name: echo}}\naddressType: {kind}\nports:\n\
             - {{name: tcp, port: {PORT}, protocol: TCP}}\n- {{name: udp, port: {PORT}, protocol: UDP}}\n\
             endpoints:\n{}",
            kind.to_lowercase(),
            endpoints.concat()
        );
    }
    text
}

/// Servers inside namespaces, ended when dropped.
#[derive(Debug, Default)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Starts the service on both hosts, and a server at `outside`; waits until both nodes balance it.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_on(lab, Servers::Hosts)
    }

    /// The same, on hosts or pods.
    pub fn start_on(lab: &Lab, servers: Servers) -> Result<Self> {
        let mut echo = Self::default();
        for node in &lab.nodes {
            let addresses = match servers {
                Servers::Hosts => SERVICE.map(str::to_owned),
                Servers::Pods => node.plan.web(),
            };
            for address in addresses {
                echo.listen(&node.web, &format!("web{}", node.plan.0), at(&address)?)?;
            }
            node.put("echo.yaml", &service(servers))?;
        }
        echo.listen(&lab.outside, "outside", at(OUTSIDE)?)?;
        wait_for("the echo service", 10, || {
            for node in &lab.nodes {
                let services = node.ask(&["services"])?;
                let names = services.as_array().into_iter().flatten();
                let ours = names.filter(|service| service["name"] == "default/echo");
                // TCP and UDP, IPv4 and IPv6.
                if ours.count() < 4 {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })?;
        lab.wait_until_settled()?;
        Ok(echo)
    }

    /// Answers at an address inside a namespace, over TCP and UDP.
    pub fn listen(&mut self, netns: &Netns, name: &str, at: SocketAddr) -> Result<()> {
        let (listener, socket) = netns
            .enter(|| Ok::<_, std::io::Error>((TcpListener::bind(at)?, UdpSocket::bind(at)?)))?
            .with_context(|| format!("listening on {at} in {}", netns.name()))?;
        socket.set_read_timeout(Some(LOOK))?;
        listener.set_nonblocking(true)?;
        let (stop, own) = (self.stop.clone(), name.to_owned());
        self.threads.push(std::thread::spawn(move || {
            answer_datagrams(&socket, &own, &stop);
        }));
        let (stop, own) = (self.stop.clone(), name.to_owned());
        self.threads.push(std::thread::spawn(move || {
            answer_connections(&listener, &own, &stop);
        }));
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What went wrong there shows in the account of whoever asked.
            let _ = thread.join();
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut bytes = [0; DATAGRAM];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let number = String::from_utf8_lossy(&bytes[..length]);
            // The answer is missed by whoever asked.
            let _ = socket.send_to(format!("{number} {name} {from}").as_bytes(), from);
        }
    }
}

fn answer_connections(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok((stream, from)) = listener.accept() {
            // A thread that has ended keeps its stack for whoever may join it: the process has room for some ten
            // thousand.
            connections.retain(|connection| !connection.is_finished());
            let (name, stop) = (name.to_owned(), stop.clone());
            connections.push(std::thread::spawn(move || {
                // A client that goes away is its own business.
                let _ = answer_connection(stream, from, &name, &stop);
            }));
        } else {
            sleep(Duration::from_millis(2));
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn answer_connection(
    mut stream: TcpStream,
    from: SocketAddr,
    name: &str,
    stop: &AtomicBool,
) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.write_all(format!("{name} {from}\n").as_bytes())?;
    let mut bytes = vec![0; BLOCK];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&bytes[..length])?,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
