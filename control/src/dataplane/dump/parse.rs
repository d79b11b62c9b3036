//! Keys as people type them: JSON, a number, or `field=value` words.
//!
//! Not for values: nothing writes tables by hand.

use std::net::IpAddr;

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::fragment::FragmentKey;
use fairlead_common::reason::Reason;
use fairlead_common::service::{ArrivalKey, ServiceDrop, ServiceKey, SourceRange, scope};
use fairlead_common::socket::Client;
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

/// A key as a person types it.
pub(super) trait FromText: Sized {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String>;
    fn from_number(number: u64) -> Result<Self, String>;
}

/// Reads JSON, a number, or `field=value` words that spaces or commas separate.
pub(super) fn parse_key<K: FromText>(text: &str) -> Result<K, String> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return K::from_number(number);
    }
    // An address alone is a key too.
    if text.parse::<IpAddr>().is_ok() {
        let alone = [("addr".to_owned(), Value::from(text))];
        return K::from_fields(&alone.into_iter().collect());
    }
    if text.starts_with('{') {
        let fields = serde_json::from_str(text).map_err(|error| error.to_string())?;
        return K::from_fields(&fields);
    }
    let fields: Option<Map<_, _>> = text
        .split([' ', ','])
        .filter(|word| !word.is_empty())
        .map(|word| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), Value::from(value)))
        })
        .collect();
    // Without fields the answer is how a key is written.
    K::from_fields(&fields.unwrap_or_default())
}

fn known(fields: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    let unknown = fields.keys().find(|name| !names.contains(&name.as_str()));
    let missing = names.iter().find(|name| !fields.contains_key(**name));
    match (unknown, missing) {
        (None, None) => Ok(()),
        (Some(name), _) => Err(format!(
            "there is no field {name}; the key is {}",
            names.join(", ")
        )),
        (None, Some(name)) => Err(format!(
            "field {name} is missing; the key is {}",
            names.join(", ")
        )),
    }
}

fn field<T: std::str::FromStr<Err: std::fmt::Display>>(
    fields: &Map<String, Value>,
    name: &str,
) -> Result<T, String> {
    let value = fields.get(name).cloned().unwrap_or_default();
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    text.parse()
        .map_err(|error| format!("{name}={text}: {error}"))
}

fn protocol(fields: &Map<String, Value>) -> Result<Proto, String> {
    let text: String = field(fields, "proto").unwrap_or_default();
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Proto::TCP),
        "udp" => Ok(Proto::UDP),
        "icmp" => Ok(Proto::ICMP),
        "icmpv6" => Ok(Proto::ICMPV6),
        _ => field(fields, "proto").map(Proto).map_err(|_| {
            format!("proto={text}: use tcp, udp, icmp, icmpv6 or a protocol's number")
        }),
    }
}

impl FromText for Addr {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        known(fields, &["addr"])?;
        field::<IpAddr>(fields, "addr").map(Self::new)
    }

    fn from_number(_: u64) -> Result<Self, String> {
        Err("the key is an address".to_owned())
    }
}

impl FromText for u32 {
    fn from_fields(_: &Map<String, Value>) -> Result<Self, String> {
        Err("the key is a number".to_owned())
    }

    fn from_number(number: u64) -> Result<Self, String> {
        number
            .try_into()
            .map_err(|_| "the key is a number below 2^32".to_owned())
    }
}

impl FromText for ServiceDrop {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        known(fields, &["service", "reason"])?;
        let name: String = field(fields, "reason")?;
        let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
        Ok(Self {
            service: field(fields, "service")?,
            reason: *reason
                .ok_or_else(|| format!("reason={name}: `dpctl drops -o wide` lists them"))?
                as u32,
        })
    }

    fn from_number(_: u64) -> Result<Self, String> {
        Self::from_fields(&Map::new())
    }
}

impl FromText for ServiceKey {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        let mut fields = fields.clone();
        // What is seen from outside is what people mean when they do not say.
        let scope = fields.remove("scope").unwrap_or_else(|| "outside".into());
        let fields = &fields;
        known(fields, &["addr", "port", "proto"])?;
        let key = Self::new(
            Addr::new(field::<IpAddr>(fields, "addr")?),
            Port::new(field(fields, "port")?),
            protocol(fields)?,
        );
        match scope.as_str() {
            Some("outside") => Ok(key),
            Some("inside") => Ok(key.inside()),
            _ => Err(format!("scope={scope}: use outside or inside")),
        }
    }

    fn from_number(_: u64) -> Result<Self, String> {
        Err("the key is addr, port, proto".to_owned())
    }
}

impl FromText for FragmentKey {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        known(fields, &["src", "dst", "id", "proto"])?;
        Ok(Self::new(
            Addr::new(field::<IpAddr>(fields, "src")?),
            Addr::new(field::<IpAddr>(fields, "dst")?),
            field(fields, "id")?,
            protocol(fields)?,
        ))
    }

    fn from_number(_: u64) -> Result<Self, String> {
        Err("the key is src, dst, id, proto".to_owned())
    }
}

impl FromText for Client {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        known(fields, &["namespace", "service"])?;
        Ok(Self {
            namespace: field(fields, "namespace")?,
            service: field(fields, "service")?,
            pad: 0,
        })
    }

    fn from_number(_: u64) -> Result<Self, String> {
        Err("the key is namespace, service".to_owned())
    }
}

impl FromText for SourceRange {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        known(fields, &["service", "prefix"])?;
        let prefix: IpNetwork = field(fields, "prefix")?;
        let addr = Addr::new(prefix.ip());
        Ok(Self::new(field(fields, "service")?, addr, prefix.prefix()))
    }

    fn from_number(_: u64) -> Result<Self, String> {
        Err("the key is service, prefix".to_owned())
    }
}

impl FromText for ArrivalKey {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        known(fields, &["service", "port", "proto", "backend"])?;
        let service = ServiceKey::new(
            Addr::new(field::<IpAddr>(fields, "service")?),
            Port::new(field(fields, "port")?),
            protocol(fields)?,
        );
        let backend = Addr::new(field::<IpAddr>(fields, "backend")?);
        Ok(Self::new(&service, backend))
    }

    fn from_number(_: u64) -> Result<Self, String> {
        Err("the key is service, port, proto, backend".to_owned())
    }
}

impl FromText for FlowKey {
    fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        let mut fields = fields.clone();
        let scope = fields.remove("scope");
        let fields = &fields;
        known(fields, &["src", "srcPort", "dst", "dstPort", "proto"])?;
        let key = Self::new(
            Addr::new(field::<IpAddr>(fields, "src")?),
            Port::new(field(fields, "srcPort")?),
            Addr::new(field::<IpAddr>(fields, "dst")?),
            Port::new(field(fields, "dstPort")?),
            protocol(fields)?,
        );
        match scope.as_ref().and_then(Value::as_str) {
            None => Ok(key),
            Some("inside") => Ok(key.of_scope(scope::INSIDE)),
            Some(other) => Err(format!("scope={other}: use inside, or leave it out")),
        }
    }

    fn from_number(_: u64) -> Result<Self, String> {
        Err("the key is src, srcPort, dst, dstPort, proto".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::render::ToJson as _;
    use super::*;

    fn service() -> ServiceKey {
        ServiceKey::new(
            Addr::new("2001:db8::1".parse().unwrap()),
            Port::new(443),
            Proto::UDP,
        )
    }

    #[test]
    fn a_key_is_read_from_words_and_from_json() {
        let words = parse_key("addr=2001:db8::1 port=443 proto=udp");
        let commas = parse_key("addr=2001:db8::1,port=443,proto=17");
        let json = parse_key(r#"{"addr":"2001:db8::1","port":443,"proto":"UDP"}"#);

        assert_eq!(words, Ok(service()));
        assert_eq!(commas, Ok(service()));
        assert_eq!(json, Ok(service()));
        assert_eq!(parse_key::<u32>(" 7 "), Ok(7));
    }

    #[test]
    fn what_is_shown_as_a_key_is_read_as_one() {
        let flow = FlowKey::new(
            Addr::new("10.0.0.1".parse().unwrap()),
            Port::new(1),
            Addr::new("10.0.0.2".parse().unwrap()),
            Port::new(2),
            Proto(132),
        );

        assert_eq!(
            parse_key::<ServiceKey>(&service().to_json().to_string()),
            Ok(service())
        );
        assert_eq!(
            parse_key::<ServiceKey>(&service().inside().to_json().to_string()),
            Ok(service().inside())
        );
        for flow in [flow, flow.of_scope(scope::INSIDE)] {
            assert_eq!(parse_key::<FlowKey>(&flow.to_json().to_string()), Ok(flow));
        }
        let arrival = ArrivalKey::new(&service(), service().addr);
        assert_eq!(parse_key(&arrival.to_json().to_string()), Ok(arrival));
        for (addr, length) in [("10.0.0.0", 8), ("fd00::", 64), ("::", 0)] {
            let range = SourceRange::new(7, Addr::new(addr.parse().unwrap()), length);
            assert_eq!(
                parse_key::<SourceRange>(&range.to_json().to_string()),
                Ok(range)
            );
        }
    }

    #[test]
    fn a_wrong_key_is_answered_with_what_is_wrong() {
        let wrong = |text| parse_key::<ServiceKey>(text).unwrap_err();

        assert_eq!(wrong("3"), "the key is addr, port, proto");
        assert_eq!(
            wrong("web"),
            "field addr is missing; the key is addr, port, proto"
        );
        assert_eq!(parse_key::<u32>("web").unwrap_err(), "the key is a number");
        assert_eq!(
            wrong("addr=192.0.2.1 port=80"),
            "field proto is missing; the key is addr, port, proto"
        );
        assert_eq!(
            wrong("vip=192.0.2.1"),
            "there is no field vip; the key is addr, port, proto"
        );
        assert_eq!(
            wrong("addr=192.0.2 port=80 proto=tcp"),
            "addr=192.0.2: invalid IP address syntax"
        );
        assert_eq!(
            wrong("addr=192.0.2.1 port=80 proto=sctpx"),
            "proto=sctpx: use tcp, udp, icmp, icmpv6 or a protocol's number"
        );
        assert!(parse_key::<u32>("x=1").is_err());
    }
}
