//! The object's maps are the registry's tables, and its names fit into the kernel.

use std::collections::BTreeSet;

use aya_obj::Object;
use aya_obj::generated::bpf_map_type::{
    self, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_DEVMAP_HASH, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE,
    BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PERCPU_HASH,
    BPF_MAP_TYPE_PROG_ARRAY, BPF_MAP_TYPE_SK_STORAGE,
};
use fairlead_common::tables::{self, Kind};
use fairlead_control::dataplane::load::OBJECT;

/// `BPF_F_MMAPABLE` of `linux/bpf.h`.
const MAPPED: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`.
const ON_DEMAND: u32 = 1;
/// `BPF_OBJ_NAME_LEN` of `linux/bpf.h`, without the final zero.
const NAME_BYTES: usize = 15;

fn kind(kind: Kind) -> (bpf_map_type, u32) {
    match kind {
        Kind::Array | Kind::Global => (BPF_MAP_TYPE_ARRAY, 0),
        Kind::MappedArray => (BPF_MAP_TYPE_ARRAY, MAPPED),
        Kind::PerCpuArray => (BPF_MAP_TYPE_PERCPU_ARRAY, 0),
        Kind::Hash => (BPF_MAP_TYPE_HASH, 0),
        Kind::PerCpuHash => (BPF_MAP_TYPE_PERCPU_HASH, 0),
        Kind::LruHash => (BPF_MAP_TYPE_LRU_HASH, 0),
        Kind::DevMapHash => (BPF_MAP_TYPE_DEVMAP_HASH, 0),
        Kind::SocketStorage => (BPF_MAP_TYPE_SK_STORAGE, ON_DEMAND),
        Kind::ProgramArray => (BPF_MAP_TYPE_PROG_ARRAY, 0),
        Kind::LpmTrie => (BPF_MAP_TYPE_LPM_TRIE, ON_DEMAND),
    }
}

#[test]
fn the_objects_maps_are_the_registrys_tables() {
    let object = Object::parse(OBJECT).expect("an object");
    let found: BTreeSet<_> = object
        .maps
        .iter()
        .filter(|(name, _)| !name.starts_with('.') || name.starts_with(".data."))
        .map(|(name, map)| {
            (
                name.as_str(),
                map.map_type(),
                map.map_flags(),
                map.key_size(),
                map.value_size(),
                map.max_entries(),
            )
        })
        .collect();
    let declared: BTreeSet<_> = tables::ALL
        .iter()
        .map(|table| {
            let (map_type, flags) = kind(table.kind);
            (
                table.in_object,
                map_type as u32,
                flags,
                table.key_bytes,
                table.value_bytes,
                table.capacity,
            )
        })
        .collect();

    let missing: Vec<_> = declared.difference(&found).collect();
    let unknown: Vec<_> = found.difference(&declared).collect();
    assert_eq!(
        (missing, unknown),
        (vec![], vec![]),
        "missing in the object, unknown to the registry"
    );
}

#[test]
fn the_objects_programs_are_these_and_their_names_fit_into_the_kernel() {
    let object = Object::parse(OBJECT).expect("an object");
    let names: BTreeSet<_> = object.programs.keys().map(String::as_str).collect();

    assert_eq!(
        names,
        BTreeSet::from([
            "connect4",
            "connect6",
            "getpeername4",
            "getpeername6",
            "recvmsg4",
            "recvmsg6",
            "sendmsg4",
            "sendmsg6",
            "tc_answer",
            "tc_egress",
            "tc_ingress",
            "tc_odd",
            "tc_relay",
            "tc_to_pod",
            "xdp_arrival",
            "xdp_answer",
            "xdp_decap",
            "xdp_here",
            "xdp_ingress",
            "xdp_odd",
            "xdp_relay",
            "xdp_return",
            "xdp_tagged"
        ])
    );
    for name in names {
        assert!(name.len() <= NAME_BYTES, "{name}");
    }
}
