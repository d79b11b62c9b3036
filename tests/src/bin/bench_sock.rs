//! `cargo xtask bench sock`: what a socket pays to reach a service, beside one that names the backend itself and
//! beside translation by rules, as kube-proxy makes them.
//!
//! ```text
//!   bench_sock OUT      OUT: the JSON to write
//! ```
//! Contenders are threads in network namespaces of their own, with clients and backends on the loopback device.
//! They take turns in many short rounds, so that whatever else the machine does falls on all of them.
//!
//! Not for packets from outside: `bench lb` measures these.
#![expect(clippy::print_stderr, reason = "it speaks to a person")]
#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_common::addr::{Port, Proto};
use fairlead_common::service::{Slot, forward};
use fairlead_common::tables::Backends;
use fairlead_tests::cgroup::Cgroup;
use fairlead_tests::kernel::{Node, on_a_node};
use fairlead_tests::report::{Figures, Goal, Report};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt::Linger};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const PORT: u16 = 80;
const BACKENDS: u8 = 10;
const BACKEND_PORT: u16 = 8080;
/// Rounds of all cases, and calls of a case in a round.
const ROUNDS: usize = 41;
const CALLS: u32 = 500;
/// Services before the one that is asked for, in a node with many.
const MANY: u16 = 1000;

const BARE: &str = "backend, no programs";
const MISS: &str = "backend, past the programs";
const OURS: &str = "service, by fairlead";
const NFTABLES: &str = "service, by nftables DNAT";
const IPTABLES: &str = "service, by iptables DNAT";
const IPTABLES_MANY: &str = "service, by iptables DNAT, 1000 services";

fn main() -> ExitCode {
    let Some(out) = std::env::args_os().nth(1) else {
        eprintln!("usage: bench_sock OUT (`cargo xtask bench sock` says it)");
        return ExitCode::from(2);
    };
    bench(Path::new(&out)).unwrap_or_else(|error| {
        eprintln!("bench sock: {error:#}");
        ExitCode::from(2)
    })
}

fn bench(out: &Path) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs needs root"
    );
    let mut report = Err(anyhow::anyhow!("the node did not run"));
    on_a_node(|node| report = measure(node));
    report?.tell(out)
}

fn backend(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, number)
}

fn measure(node: &mut Node) -> Result<Report> {
    let mut contenders = vec![
        Contender::start(BARE, backend(1), BACKEND_PORT, None)?,
        Contender::start(NFTABLES, SERVICE, PORT, Some(nftables()))?,
        Contender::start(IPTABLES, SERVICE, PORT, Some(iptables(0)))?,
        Contender::start(IPTABLES_MANY, SERVICE, PORT, Some(iptables(MANY)))?,
    ];
    let cgroup = Cgroup::enter()?;
    node.attach_sockets(&cgroup);
    furnish(node)?;
    // These are in the cgroup, because this thread is.
    contenders.insert(1, Contender::start(MISS, backend(1), BACKEND_PORT, None)?);
    contenders.insert(2, Contender::start(OURS, SERVICE, PORT, None)?);
    // Once more than counts, for the caches.
    for _ in 0..=ROUNDS {
        for contender in &mut contenders {
            contender.round()?;
        }
    }
    let mut report = Report::default();
    for what in Call::ALL {
        for contender in &contenders {
            let rounds = &contender.rounds[what as usize][1..];
            let name = format!("{}: {}", what.name(), contender.name);
            report.figures.push(Figures::of(name, what.unit(), rounds));
        }
    }
    let median = |what: Call, name: &str| report.median(&format!("{}: {name}", what.name()));
    let ratios: Vec<_> = Call::ALL
        .into_iter()
        .flat_map(|what| {
            let ours = median(what, OURS);
            [
                (
                    what,
                    OURS,
                    BARE,
                    ours / median(what, BARE),
                    Goal::AtMost(1.25),
                ),
                (
                    what,
                    MISS,
                    BARE,
                    median(what, MISS) / median(what, BARE),
                    Goal::AtMost(1.10),
                ),
                (
                    what,
                    NFTABLES,
                    OURS,
                    median(what, NFTABLES) / ours,
                    Goal::AtLeast(1.0),
                ),
                (
                    what,
                    IPTABLES,
                    OURS,
                    median(what, IPTABLES) / ours,
                    Goal::AtLeast(1.0),
                ),
            ]
        })
        .collect();
    for (what, one, other, value, goal) in ratios {
        report.ratio(format!("{}: {one} / {other}", what.name()), value, goal);
    }
    drop(contenders);
    Ok(report)
}

/// The node's rows.
fn furnish(node: &mut Node) -> Result<()> {
    let ring: Vec<Slot> = (1..=BACKENDS)
        .map(|number| {
            let id = node.backend(&backend(number).to_string(), forward::HERE);
            let mut row = node.get::<Backends>(&id).context("a backend's row")?;
            row.port = Port::new(BACKEND_PORT);
            node.set::<Backends>(&id, &row);
            Ok(Slot {
                current: id,
                previous: 0,
            })
        })
        .collect::<Result<_>>()?;
    for proto in [Proto::TCP, Proto::UDP] {
        node.inside_service(&SERVICE.to_string(), PORT, proto, &ring, 0);
    }
    Ok(())
}

fn furnish_loopback() -> Result<()> {
    let mut lines = "link set lo up\n".to_owned();
    for number in 1..=BACKENDS {
        lines += &format!("addr add {}/32 dev lo\n", backend(number));
    }
    // What is translated needs a way before it is.
    lines += &format!("route add {SERVICE}/32 dev lo\n");
    run("ip", &["-batch", "-"], &lines)
}

fn run(program: &str, words: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let mut pipe = child.stdin.take().context("a pipe")?;
    pipe.write_all(input.as_bytes())?;
    drop(pipe);
    ensure!(child.wait()?.success(), "{program} refused:\n{input}");
    Ok(())
}

/// A program that reads rules, and the rules.
struct Rules(&'static str, &'static [&'static str], String);

/// A service as kube-proxy's nftables mode balances it: by chance.
fn nftables() -> Rules {
    let map: Vec<String> = (1..=BACKENDS)
        .map(|number| format!("{} : {}", number - 1, backend(number)))
        .collect();
    let map = map.join(", ");
    let rule = |proto: &str| {
        format!(
            "ip daddr {SERVICE} {proto} dport {PORT} dnat to numgen random mod {BACKENDS} map {{ {map} }} : {BACKEND_PORT}\n"
        )
    };
    let text = format!(
        "table ip nat {{\nchain output {{\ntype nat hook output priority -100;\n{}{}}}\n}}\n",
        rule("tcp"),
        rule("udp")
    );
    Rules("nft", &["-f", "-"], text)
}

/// A service as kube-proxy's iptables mode balances it: a rule per service until it is found, and a rule per
/// backend, taken by chance.
fn iptables(others: u16) -> Rules {
    let mut text = "*nat\n:OUTPUT ACCEPT\n:SERVICES -\n:WEB -\n-A OUTPUT -j SERVICES\n".to_owned();
    for number in 0..others {
        let [high, low] = number.to_be_bytes();
        text += &format!("-A SERVICES -d 10.97.{high}.{low}/32 -p tcp --dport {PORT} -j WEB\n");
    }
    for proto in ["tcp", "udp"] {
        text += &format!("-A SERVICES -d {SERVICE}/32 -p {proto} --dport {PORT} -j WEB\n");
    }
    for number in 1..=BACKENDS {
        let chance = 1.0 / f64::from(BACKENDS + 1 - number);
        for proto in ["tcp", "udp"] {
            text += &format!(
                "-A WEB -p {proto} -m statistic --mode random --probability {chance:.8} -j DNAT --to-destination {}:{BACKEND_PORT}\n",
                backend(number)
            );
        }
    }
    text += "COMMIT\n";
    Rules("iptables-restore", &[], text)
}

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// `connect` of a TCP socket, until the connection stands.
    Connect,
    /// A byte there and back on a connection that stands.
    Exchange,
    /// A datagram there and back on a UDP socket that is not connected.
    Datagram,
}

impl Call {
    const ALL: [Self; 3] = [Self::Connect, Self::Exchange, Self::Datagram];

    const fn name(self) -> &'static str {
        match self {
            Self::Connect => "tcp connect",
            Self::Exchange => "tcp exchange",
            Self::Datagram => "udp exchange",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Connect => "ns/connect",
            Self::Exchange | Self::Datagram => "ns/exchange",
        }
    }
}

/// A client, its backends, and what its rounds took.
struct Contender {
    name: &'static str,
    turns: SyncSender<Call>,
    taken: Receiver<Result<f64>>,
    rounds: [Vec<f64>; 3],
}

impl Contender {
    /// Starts one in a namespace of its own.
    fn start(name: &'static str, ip: Ipv4Addr, port: u16, rules: Option<Rules>) -> Result<Self> {
        Self::spawn(name, move || {
            unshare(CloneFlags::CLONE_NEWNET).context("a namespace")?;
            furnish_loopback()?;
            if let Some(Rules(program, words, text)) = rules {
                run(program, words, &text)?;
            }
            Client::new((ip, port).into())
        })
    }

    fn spawn(
        name: &'static str,
        make: impl FnOnce() -> Result<Client> + Send + 'static,
    ) -> Result<Self> {
        let (turns, turn) = sync_channel(0);
        let (take, taken) = sync_channel(0);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut client = make();
                for call in turn {
                    let took = match &mut client {
                        Ok(client) => client.run(call),
                        Err(error) => Err(anyhow::anyhow!("{error:#}")),
                    };
                    if take.send(took).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            name,
            turns,
            taken,
            rounds: [const { Vec::new() }; 3],
        })
    }

    /// Does a round of every call.
    fn round(&mut self) -> Result<()> {
        for call in Call::ALL {
            self.turns.send(call)?;
            let took = self.taken.recv()?;
            let took = took.with_context(|| format!("{}: {}", call.name(), self.name))?;
            self.rounds[call as usize].push(took);
        }
        Ok(())
    }
}

/// A client and the backends, in one thread: on the loopback device a call returns when the other end has it.
struct Client {
    to: SocketAddr,
    listener: TcpListener,
    backends: Vec<UdpSocket>,
    connection: (TcpStream, TcpStream),
    socket: UdpSocket,
}

impl Client {
    fn new(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, BACKEND_PORT))?;
        let client = TcpStream::connect(to)?;
        let server = listener.accept()?.0;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let backends = (1..=BACKENDS)
            .map(|number| {
                let socket = UdpSocket::bind((backend(number), BACKEND_PORT))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            to,
            listener,
            backends,
            connection: (client, server),
            socket,
        })
    }

    /// Does a round of a call: nanoseconds for each.
    fn run(&mut self, call: Call) -> Result<f64> {
        let mut taken = Duration::ZERO;
        for _ in 0..CALLS {
            taken += match call {
                Call::Connect => self.connect()?,
                Call::Exchange => self.exchange()?,
                Call::Datagram => self.datagram()?,
            };
        }
        Ok(taken.as_secs_f64() * 1e9 / f64::from(CALLS))
    }

    fn connect(&self) -> Result<Duration> {
        let began = Instant::now();
        let client = TcpStream::connect(self.to)?;
        let taken = began.elapsed();
        self.listener.accept()?;
        // Reset: no port waits for late segments.
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&client, Linger, &linger)?;
        Ok(taken)
    }

    fn exchange(&mut self) -> Result<Duration> {
        let (client, server) = &mut self.connection;
        let mut byte = [0];
        let began = Instant::now();
        client.write_all(&byte)?;
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)?;
        Ok(began.elapsed())
    }

    fn datagram(&mut self) -> Result<Duration> {
        let mut buffer = [0; 8];
        let began = Instant::now();
        self.socket.send_to(b"question", self.to)?;
        // The flow's backend is found once, and stands first from then on.
        let found = self
            .backends
            .iter()
            .find_map(|backend| Some((backend, backend.recv_from(&mut buffer).ok()?)));
        let (backend, (length, client)) = found.context("no backend got the datagram")?;
        backend.send_to(&buffer[..length], client)?;
        let (_, from) = self.socket.recv_from(&mut buffer)?;
        let taken = began.elapsed();
        ensure!(from == self.to, "{from} answered, not {}", self.to);
        let at = backend.local_addr()?;
        let place = self
            .backends
            .iter()
            .position(|one| one.local_addr().is_ok_and(|own| own == at));
        self.backends.swap(0, place.unwrap_or(0));
        Ok(taken)
    }
}
