//! How a backend is asked whether it serves, as the annotation `fairlead.io/health-check` says it.
//!
//! ```text
//!   KIND[:PORT][/PATH] [option=value]...
//!   http:8080/healthz interval=2s timeout=1s unhealthy=3 healthy=2
//! ```
//! Not here: asking (`health`), and what an answer means for the ring ([`super::readiness`]).

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::BackendAddr;

/// The annotation of a `Service` that asks for checks of its backends.
pub const ANNOTATION: &str = "fairlead.io/health-check";

const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
const THRESHOLDS: RangeInclusive<u32> = 1..=100;
const STATUSES: RangeInclusive<u16> = 100..=599;

/// How a backend is asked, how often, and how many answers in a row decide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Check {
    /// What is asked.
    pub probe: Probe,
    /// The port that is asked. Default: the one that the backend serves on.
    pub port: Option<u16>,
    /// Time between the beginnings of two probes. Default: 5 s.
    pub interval: Duration,
    /// How long an answer may take; at most the interval. Default: 1 s.
    pub timeout: Duration,
    /// So many failures in a row take a backend off the ring. Default: 3.
    pub unhealthy: u32,
    /// So many successes in a row put it back. Default: 2.
    pub healthy: u32,
}

/// What a backend is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// Whether it accepts a connection.
    Tcp,
    /// Whether it answers a request with a status that is good.
    Http(Http),
    /// Whether it takes a datagram: an answer and silence are good, an ICMP error ("port unreachable") is not.
    Udp {
        /// What the datagram carries.
        payload: String,
    },
}

/// A `GET` request, and which answers are good.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Http {
    /// Whether it goes over TLS. As kubelet does it, the certificate is not verified: the question is whether
    /// the backend works, not who it is.
    pub tls: bool,
    /// Path and query. Default: `/`.
    pub path: String,
    /// The `Host` header, and the server name in TLS. Default: the backend's address.
    pub host: Option<String>,
    /// The lowest and the highest status that is good. Default: 200 and 399; redirects are not followed.
    pub status: (u16, u16),
}

/// A backend and how it is asked. Services that ask the same share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Who is asked: the backend's own address, also where it serves an address of the service.
    pub at: SocketAddr,
    /// How.
    pub check: Check,
}

impl Check {
    /// Whom this check asks about a backend.
    pub fn target(&self, backend: &BackendAddr) -> Target {
        Target {
            at: SocketAddr::new(backend.addr, self.port.unwrap_or(backend.port)),
            check: self.clone(),
        }
    }
}

/// Why a text is no check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It does not begin with a kind.
    #[error(
        "{0:?} is no kind of check; write tcp, http, https or udp, as in \"http:8080/healthz interval=2s\""
    )]
    Kind(String),
    /// The port is none.
    #[error("{0:?} is no port; write a number from 1 to 65535 after the colon")]
    Port(String),
    /// Only HTTP has paths.
    #[error("a {kind} check has no path; leave {path:?} out")]
    Path {
        /// The kind of check.
        kind: &'static str,
        /// The path.
        path: String,
    },
    /// An option that this kind does not have.
    #[error("{kind} checks have no option {option:?}; they have {known}")]
    Option {
        /// The kind of check.
        kind: &'static str,
        /// What was written.
        option: String,
        /// What could be.
        known: String,
    },
    /// A value that is none.
    #[error("{option}={value} cannot be: {need}")]
    Value {
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What it must be.
        need: String,
    },
}

const COMMON: [&str; 4] = ["interval", "timeout", "unhealthy", "healthy"];

impl FromStr for Check {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let mut words = text.split_whitespace();
        let what = words.next().unwrap_or_default();
        let kind_end = what.find([':', '/']).unwrap_or(what.len());
        let (kind, rest) = what.split_at(kind_end);
        let (port, path) = match rest.strip_prefix(':') {
            Some(rest) => {
                let (port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let number = port.parse().ok().filter(|number| *number != 0);
                (
                    Some(number.ok_or_else(|| Wrong::Port(port.to_owned()))?),
                    path,
                )
            }
            None => (None, rest),
        };
        let (kind, probe) = match kind {
            "tcp" => ("tcp", Probe::Tcp),
            "udp" => (
                "udp",
                Probe::Udp {
                    payload: String::new(),
                },
            ),
            "http" => ("http", Probe::Http(Http::get(false, path))),
            "https" => ("https", Probe::Http(Http::get(true, path))),
            _ => return Err(Wrong::Kind(kind.to_owned())),
        };
        if !path.is_empty() && !matches!(probe, Probe::Http(_)) {
            let path = path.to_owned();
            return Err(Wrong::Path { kind, path });
        }
        let mut check = Self {
            probe,
            port,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            unhealthy: 3,
            healthy: 2,
        };
        let mut has_timeout = false;
        for word in words {
            let (option, value) = word.split_once('=').unwrap_or((word, ""));
            has_timeout |= option == "timeout";
            check.set(kind, option, value)?;
        }
        if !has_timeout {
            check.timeout = check.timeout.min(check.interval);
        }
        if check.timeout > check.interval {
            return Err(wrong(
                "timeout",
                &seconds(check.timeout),
                &format!(
                    "an answer must be there before the next question, within interval={}",
                    seconds(check.interval)
                ),
            ));
        }
        Ok(check)
    }
}

impl Check {
    fn set(&mut self, kind: &'static str, option: &str, value: &str) -> Result<(), Wrong> {
        match (option, &mut self.probe) {
            ("interval", _) => self.interval = duration(option, value)?,
            ("timeout", _) => self.timeout = duration(option, value)?,
            ("unhealthy", _) => self.unhealthy = threshold(option, value)?,
            ("healthy", _) => self.healthy = threshold(option, value)?,
            ("host", Probe::Http(http)) if !value.is_empty() => http.host = Some(value.to_owned()),
            ("status", Probe::Http(http)) => http.status = statuses(option, value)?,
            ("payload", Probe::Udp { payload }) => value.clone_into(payload),
            ("host", Probe::Http(_)) => return Err(wrong(option, value, "it must be a host name")),
            (_, probe) => {
                let own: &[&str] = match probe {
                    Probe::Tcp => &[],
                    Probe::Http(_) => &["host", "status"],
                    Probe::Udp { .. } => &["payload"],
                };
                return Err(Wrong::Option {
                    kind,
                    option: option.to_owned(),
                    known: [&COMMON, own].concat().join(", "),
                });
            }
        }
        Ok(())
    }
}

impl Http {
    fn get(tls: bool, path: &str) -> Self {
        Self {
            tls,
            path: if path.is_empty() { "/" } else { path }.to_owned(),
            host: None,
            status: (200, 399),
        }
    }
}

fn wrong(option: &str, value: &str, need: &str) -> Wrong {
    Wrong::Value {
        option: option.to_owned(),
        value: value.to_owned(),
        need: need.to_owned(),
    }
}

fn duration(option: &str, value: &str) -> Result<Duration, Wrong> {
    let parsed = jiff::SignedDuration::from_str(value).ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| INTERVALS.contains(duration))
        .ok_or_else(|| wrong(option, value, "it must be a time from 100ms to 1h"))
}

fn threshold(option: &str, value: &str) -> Result<u32, Wrong> {
    let number = value
        .parse()
        .ok()
        .filter(|number| THRESHOLDS.contains(number));
    number.ok_or_else(|| wrong(option, value, "it must be a number from 1 to 100"))
}

fn statuses(option: &str, value: &str) -> Result<(u16, u16), Wrong> {
    let (low, high) = value.split_once('-').unwrap_or((value, value));
    let status = |text: &str| text.parse().ok().filter(|status| STATUSES.contains(status));
    match (status(low), status(high)) {
        (Some(low), Some(high)) if low <= high => Ok((low, high)),
        _ => Err(wrong(
            option,
            value,
            "it must be a status or a range of them, such as 200-299",
        )),
    }
}

/// `500ms`, `2s`, `1m 30s`: as it can be written in the annotation, but for the space.
fn seconds(duration: Duration) -> String {
    let signed = jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX);
    format!("{signed:#}").replace(' ', "")
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.probe {
            Probe::Tcp => "tcp",
            Probe::Udp { .. } => "udp",
            Probe::Http(http) if http.tls => "https",
            Probe::Http(_) => "http",
        })?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match &self.probe {
            Probe::Tcp => {}
            Probe::Udp { payload } if payload.is_empty() => {}
            Probe::Udp { payload } => write!(f, " payload={payload}")?,
            Probe::Http(http) => {
                f.write_str(&http.path)?;
                if let Some(host) = &http.host {
                    write!(f, " host={host}")?;
                }
                write!(f, " status={}-{}", http.status.0, http.status.1)?;
            }
        }
        write!(
            f,
            " interval={} timeout={} unhealthy={} healthy={}",
            seconds(self.interval),
            seconds(self.timeout),
            self.unhealthy,
            self.healthy
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_text(text: &str) -> String {
        text.parse::<Check>().unwrap_err().to_string()
    }

    #[test]
    fn a_kind_alone_is_a_check_with_defaults() {
        let check: Check = "tcp".parse().unwrap();

        assert_eq!(check.probe, Probe::Tcp);
        assert_eq!(check.port, None);
        assert_eq!((check.unhealthy, check.healthy), (3, 2));
        assert_eq!(
            (check.interval, check.timeout),
            (Duration::from_secs(5), Duration::from_secs(1))
        );
    }

    #[test]
    fn everything_can_be_said_and_is_said_back() {
        for text in [
            "http:8080/healthz?full=1 host=web.example status=200-204 interval=2s timeout=500ms unhealthy=4 healthy=1",
            "https/ status=200-399 interval=5s timeout=1s unhealthy=3 healthy=2",
            "tcp:443 interval=1m timeout=10s unhealthy=1 healthy=1",
            "udp:53 payload=ping interval=5s timeout=1s unhealthy=3 healthy=2",
        ] {
            let check: Check = text.parse().unwrap();

            assert_eq!(check.to_string(), text);
            assert_eq!(check.to_string().parse(), Ok(check));
        }
        let one: Check = "http status=204".parse().unwrap();
        assert!(one.to_string().contains("status=204-204"));
    }

    #[test]
    fn a_short_interval_shortens_the_time_for_an_answer() {
        let check: Check = "tcp interval=200ms".parse().unwrap();

        assert_eq!(check.timeout, Duration::from_millis(200));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_write() {
        assert_eq!(
            wrong_text(""),
            "\"\" is no kind of check; write tcp, http, https or udp, as in \"http:8080/healthz interval=2s\""
        );
        assert_eq!(
            wrong_text("icmp").split(';').next(),
            Some("\"icmp\" is no kind of check")
        );
        assert_eq!(
            wrong_text("tcp:0"),
            "\"0\" is no port; write a number from 1 to 65535 after the colon"
        );
        assert_eq!(
            wrong_text("tcp:80/x"),
            "a tcp check has no path; leave \"/x\" out"
        );
        assert_eq!(
            wrong_text("tcp host=a"),
            "tcp checks have no option \"host\"; they have interval, timeout, unhealthy, healthy"
        );
        assert_eq!(
            wrong_text("http interval=fast"),
            "interval=fast cannot be: it must be a time from 100ms to 1h"
        );
        assert_eq!(
            wrong_text("http interval=1s timeout=2s"),
            "timeout=2s cannot be: an answer must be there before the next question, within interval=1s"
        );
        assert_eq!(
            wrong_text("http status=300-200"),
            "status=300-200 cannot be: it must be a status or a range of them, such as 200-299"
        );
        assert_eq!(
            wrong_text("udp unhealthy=0"),
            "unhealthy=0 cannot be: it must be a number from 1 to 100"
        );
    }
}
