//! A register access on a mapped region is the one load or store it stands for: shown on the compiler's output.
#![cfg(target_arch = "x86_64")] // reads x86-64 assembly; other instruction sets have other words for the same

use std::path::Path;
use std::process::Command;

/// The instructions of one function of `examples/bare_access.rs`, without directives and comments.
fn instructions(assembly: &str, function: &str) -> Vec<String> {
    let is_label = |line: &&str| line.starts_with("_") && line.contains(function) && line.ends_with(':');
    let start = assembly.lines().position(|line| is_label(&line)).expect("the function is in the assembly");
    let code = |line: &str| line.starts_with('\t') && !line.trim_start().starts_with(['.', '#']);
    let body = assembly.lines().skip(start + 1).take_while(|line| !line.contains(".cfi_endproc"));
    body.filter(|line| code(line)).map(|line| line.trim().replace('\t', " ")).collect()
}

/// Compiled once for all tests of this file, optimised.
fn assembly() -> &'static str {
    static ASSEMBLY: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ASSEMBLY.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bare_access.s");
        let emit = format!("--emit=asm={}", out.display());
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let args = ["rustc", "--locked", "--release", "-p", "udrv", "--example", "bare_access"];
        let done = Command::new(cargo)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(args)
            // Of others' crates only what is inlined is in these functions, and that is compiled here.
            .arg("--config=profile.release.package.'*'.opt-level=0")
            .args(["--", &emit, "-Ccodegen-units=1", "-Cdebuginfo=0"])
            .output()
            .expect("cargo starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::read_to_string(&out).expect("the assembly is written")
    })
}

#[test]
fn read_of_constant_offset_is_one_load() {
    let code = instructions(assembly(), "read_status");
    // The first loads the mapping's address out of the `Mapped` that the function is passed.
    assert!(
        matches!(&code[..], [base, load, ret] if base.starts_with("movq") && base.ends_with(", %rax")
        && load == "movl 36(%rax), %eax" && ret == "retq"),
        "{code:#?}"
    );
}

#[test]
fn write_of_constant_offset_is_one_store() {
    let code = instructions(assembly(), "write_last");
    assert!(
        matches!(&code[..], [base, store, ret] if base.starts_with("movq") && base.ends_with(", %rax")
        && store == "movq %rsi, 4088(%rax)" && ret == "retq"),
        "{code:#?}"
    );
}

#[test]
fn read_of_run_time_offset_is_checked() {
    let code = instructions(assembly(), "read_checked");
    assert!(code.iter().any(|line| line.starts_with("cmp")), "{code:#?}");
}
