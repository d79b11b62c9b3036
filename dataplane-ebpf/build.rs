//! Links the object anew when the linker changes; cargo itself watches sources and compiler only.

fn main() {
    println!("cargo::rerun-if-env-changed=FAIRLEAD_BPF_LINKER");
    if let Ok(linker) = std::env::var("FAIRLEAD_BPF_LINKER") {
        println!("cargo::rerun-if-changed={linker}");
    }
}
