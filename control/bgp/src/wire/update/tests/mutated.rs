//! UPDATEs that are almost right: parts of good ones, mixed and damaged where decoders look.
//!
//! Random octets are refused at the first length; these get behind it. What must hold of each: nothing panics, what
//! is accepted without a fault is said again in the same way, and what is plain is read as the codec reads it.

use super::*;
use crate::wire::{
    LargeCommunity, MAX_MESSAGE_LEN, RareAttributes, UnknownAttribute, message_length,
};

/// A small generator (splitmix64): a seed gives the same messages everywhere.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    fn octet(&mut self) -> u8 {
        const TELLING: [u8; 12] = [0, 1, 2, 4, 8, 16, 32, 33, 64, 127, 128, 255];
        if self.below(2) == 0 {
            TELLING[self.below(TELLING.len())]
        } else {
            self.roll() as u8
        }
    }
}

#[derive(Debug, Clone)]
struct Part {
    flags: u8,
    code: u8,
    value: Vec<u8>,
    /// How much its length says too much or too little.
    lie: i16,
}

/// The three sections of an UPDATE.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    withdrawn: Vec<u8>,
    parts: Vec<Part>,
    nlri: Vec<u8>,
    /// How much the length of the attributes says too much or too little.
    lie: i16,
}

impl Shape {
    fn of(message: &[u8]) -> Self {
        let word = |at: usize| usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
        let withdrawn = word(19);
        let attributes = word(21 + withdrawn);
        let begin = 23 + withdrawn;
        let mut rest = &message[begin..begin + attributes];
        let mut parts = Vec::new();
        while let [flags, code, ..] = *rest {
            let (header, length) = if flags & 0x10 == 0 {
                (3, usize::from(rest[2]))
            } else {
                (4, usize::from(u16::from_be_bytes([rest[2], rest[3]])))
            };
            parts.push(Part {
                flags: flags & !0x10,
                code,
                value: rest[header..header + length].to_vec(),
                lie: 0,
            });
            rest = &rest[header + length..];
        }
        Self {
            withdrawn: message[21..21 + withdrawn].to_vec(),
            parts,
            nlri: message[begin + attributes..].to_vec(),
            lie: 0,
        }
    }

    pub(super) fn bytes(&self) -> Bytes {
        let lying = |length: usize, lie: i16| (length as u16).saturating_add_signed(lie);
        let mut attributes = Vec::new();
        for part in &self.parts {
            let length = lying(part.value.len(), part.lie);
            if part.flags & 0x10 == 0 && length < 256 {
                attributes.extend([part.flags, part.code, length as u8]);
            } else {
                attributes.extend([part.flags | 0x10, part.code]);
                attributes.extend(length.to_be_bytes());
            }
            attributes.extend(&part.value);
        }
        let mut body = (self.withdrawn.len() as u16).to_be_bytes().to_vec();
        body.extend(&self.withdrawn);
        body.extend(lying(attributes.len(), self.lie).to_be_bytes());
        body.extend(attributes);
        body.extend(&self.nlri);
        body.truncate(4096 - 19);
        let mut bytes = vec![0xFF; 16];
        bytes.extend((19 + body.len() as u16).to_be_bytes());
        bytes.push(2);
        bytes.extend(body);
        bytes.into()
    }

    pub(super) fn damage(&mut self, dice: &mut Dice, others: &[Self]) {
        let parts = self.parts.len();
        let at = dice.below(parts);
        match dice.below(14) {
            0 => self.lie = (dice.roll() as i8 % 5).into(),
            1 => damage_octets(&mut self.nlri, dice),
            2 => damage_octets(&mut self.withdrawn, dice),
            3 => std::mem::swap(&mut self.nlri, &mut self.withdrawn),
            4 => {
                let other = &others[dice.below(others.len())];
                if let Some(part) = other.parts.get(dice.below(other.parts.len())) {
                    self.parts.insert(dice.below(parts + 1), part.clone());
                }
            }
            _ if parts == 0 => {}
            5 => self.parts[at].flags ^= 1 << dice.below(8),
            6 => self.parts[at].code = dice.below(44) as u8,
            7 => self.parts[at].code = dice.octet(),
            8 => self.parts[at].lie = (dice.roll() as i8 % 5).into(),
            9 => self.parts.swap(at, dice.below(parts)),
            10 => {
                self.parts.remove(at);
            }
            11 => {
                let part = self.parts[at].clone();
                self.parts.push(part);
            }
            12 => {
                let length = dice.below(300);
                self.parts[at].value = (0..length).map(|_| dice.octet()).collect();
            }
            _ => damage_octets(&mut self.parts[at].value, dice),
        }
    }
}

fn damage_octets(octets: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(octets.len());
    match dice.below(4) {
        0 => octets.truncate(at),
        1 => octets.insert(at, dice.octet()),
        2 => octets.extend((0..dice.below(24)).map(|_| dice.octet())),
        _ => {
            if let Some(octet) = octets.get_mut(at) {
                *octet = dice.octet();
            }
        }
    }
}

/// Good messages of every kind that we know, with default routes among their prefixes or without.
pub(super) fn seeds(with_default: bool) -> Vec<Shape> {
    let prefixes = |all: &[&str]| {
        let all = all
            .iter()
            .map(|prefix| prefix.parse::<IpNetwork>().unwrap());
        all.filter(|prefix| with_default || prefix.prefix() > 0)
            .collect::<Vec<_>>()
    };
    let v4 = prefixes(&[
        "10.0.0.0/8",
        "0.0.0.0/0",
        "192.0.2.128/25",
        "203.0.113.7/32",
    ]);
    let v6 = prefixes(&["2001:db8::/32", "::/0", "2001:db8::1/128"]);
    let mut rich = attributes("192.0.2.1");
    rich.med = Some(7);
    rich.local_pref = Some(100);
    rich.communities = vec![1, 2, 0xFFFF_FF01];
    rich.large_communities = vec![LargeCommunity {
        global: 1,
        local1: 2,
        local2: 3,
    }];
    rich.set_rare(RareAttributes {
        only_to_customer: Some(65001),
        originator_id: Some(Ipv4Addr::new(10, 0, 0, 9)),
        cluster_list: vec![Ipv4Addr::new(10, 0, 0, 8)],
        atomic_aggregate: true,
        aggregator: Some(crate::wire::Aggregator {
            asn: 4_200_000_000,
            router_id: Ipv4Addr::new(10, 0, 0, 7),
        }),
        extended_communities: vec![crate::wire::ExtendedCommunity([0, 2, 0, 1, 0, 0, 0, 7])],
        ipv6_extended_communities: vec![[0; 20]],
        unknown: vec![UnknownAttribute {
            code: 200,
            value: vec![1, 2, 3],
        }],
        partial: [8, 32].into(),
    });
    let usual = Attributes {
        rare: None,
        ..rich.clone()
    };
    let mut on_link = rich.clone();
    on_link.next_hop = "fe80::1".parse().unwrap();
    let mut global = rich.clone();
    global.next_hop = "2001:db8::9".parse().unwrap();
    global.link_local = Some("fe80::1".parse().unwrap());
    let mut messages = Vec::new();
    for four_octet_as in [true, false] {
        for (attributes, family, prefixes) in [
            (&rich, Family::Ipv4Unicast, &v4),
            (&usual, Family::Ipv4Unicast, &v4),
            (&global, Family::Ipv6Unicast, &v6),
            (&on_link, Family::Ipv4Unicast, &v4),
            (&attributes("192.0.2.1"), Family::Ipv4Unicast, &v4),
        ] {
            let encoding = Encoding {
                four_octet_as,
                ..Encoding::PLAIN
            };
            messages.extend(pack_announcements(attributes, family, prefixes, encoding).unwrap());
        }
    }
    messages.extend(pack_withdrawals(Family::Ipv4Unicast, &v4, Encoding::PLAIN));
    messages.extend(pack_withdrawals(Family::Ipv6Unicast, &v6, Encoding::PLAIN));
    messages.extend(Family::ALL.map(end_of_rib));
    messages.iter().map(|message| Shape::of(message)).collect()
}

/// How sessions differ in which an UPDATE is read: AS numbers of four octets, internal, on a known link.
const SESSIONS: [(bool, bool, bool); 4] = [
    (true, true, true),
    (true, false, false),
    (false, true, false),
    (false, false, true),
];

/// How often a message was accepted without a fault, and how often it was plain.
#[derive(Debug, Default)]
struct Heard {
    accepted: usize,
    plain: usize,
}

/// Reads a message in every kind of session.
fn hear(bytes: &Bytes) -> Heard {
    assert_eq!(
        message_length(bytes, MAX_MESSAGE_LEN),
        Ok(Some(bytes.len()))
    );
    let Ok(Message::Update(raw)) = decode(bytes.clone()) else {
        return Heard::default();
    };
    let both = BTreeSet::from(Family::ALL);
    let mut heard = Heard::default();
    for (four_octet_as, internal, on_link) in SESSIONS {
        let one = BTreeSet::from([Family::Ipv6Unicast]);
        let _ = decode_update(
            &raw,
            Reading {
                four_octet_as,
                internal,
                families: &one,
                add_path: &BTreeSet::new(),
                on_link,
            },
        );
        let reading = Reading {
            four_octet_as,
            internal,
            families: &both,
            add_path: &BTreeSet::new(),
            on_link,
        };
        if let Some(update) = plain::read(&raw.0, &reading) {
            assert_eq!(Ok(update), decode_any(&raw, reading), "{bytes:02x?}");
            heard.plain += 1;
        }
        let Ok(update) = decode_update(&raw, reading) else {
            continue;
        };
        heard.accepted += usize::from(update.faults.is_empty());
        for reach in &update.reach {
            say_again(reach, four_octet_as, internal, on_link);
        }
    }
    heard
}

/// What was accepted is said in the same way, and comes back as it is.
fn say_again(reach: &Reach, four_octet_as: bool, internal: bool, on_link: bool) {
    let family = Family::of(&reach.prefixes[0]);
    for prefix in &reach.prefixes {
        assert_eq!(prefix.ip(), prefix.network(), "host bits are zero");
        assert_eq!(Family::of(prefix), family);
    }
    let encoding = Encoding {
        four_octet_as,
        ..Encoding::PLAIN
    };
    let said = pack_announcements(&reach.attributes, family, &reach.prefixes, encoding);
    let Ok(said) = said else {
        // Attributes that filled their message may be longer in our words.
        return;
    };
    let mut back = Vec::new();
    for message in said {
        let Ok(Message::Update(raw)) = decode(message.clone()) else {
            panic!("we do not read our own {message:02x?}");
        };
        let update = decode_update(
            &raw,
            Reading {
                four_octet_as,
                internal,
                families: &BTreeSet::from(Family::ALL),
                add_path: &BTreeSet::new(),
                on_link,
            },
        );
        let update = update.unwrap_or_else(|error| panic!("{error}: {message:02x?}"));
        assert!(
            update.faults.is_empty(),
            "{:?}: {message:02x?}",
            update.faults
        );
        for again in update.reach {
            assert_eq!(again.attributes, reach.attributes);
            back.extend(again.prefixes);
        }
    }
    assert_eq!(back, reach.prefixes);
}

fn run(seed: u64, count: u64) {
    let seeds = seeds(true);
    let mut dice = Dice(seed);
    let mut all = Heard::default();
    for _ in 0..count {
        let mut shape = seeds[dice.below(seeds.len())].clone();
        for _ in 0..=dice.below(4) {
            shape.damage(&mut dice, &seeds);
        }
        let heard = hear(&shape.bytes());
        all.accepted += heard.accepted;
        all.plain += heard.plain;
    }
    // Damage that is always seen at once would test little.
    assert!(all.accepted as u64 > count / 20, "{all:?} of {count}");
    assert!(all.plain as u64 > count / 100, "{all:?} of {count}");
}

/// `FAIRLEAD_MUTANTS` says how many, `FAIRLEAD_SEED` which: millions take minutes.
#[test]
fn damaged_updates_panic_nowhere_and_what_is_accepted_is_said_again() {
    for seed in seeds(true) {
        assert!(hear(&seed.bytes()).accepted > 0, "{seed:?}");
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    run(
        number("FAIRLEAD_SEED").unwrap_or(1),
        number("FAIRLEAD_MUTANTS").unwrap_or(5_000),
    );
}
