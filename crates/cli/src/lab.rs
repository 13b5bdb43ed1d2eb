//! What `demo` and `lab` share.

use crate::failure::Failure;

/// Whether a lab can be here.
pub(crate) fn supported() -> Result<(), Failure> {
    if cfg!(target_os = "linux") {
        return enough_files();
    }
    Err(Failure::new(format!("a lab needs Linux, and this is {}", std::env::consts::OS))
        .because("its clusters have addresses of their own inside 127.0.0.0/8, which only Linux gives without rights")
        .hint("everything but `lab` and `demo` works here"))
}

/// A cluster of a lab needs a few hundred sockets and files.
fn enough_files() -> Result<(), Failure> {
    const NEEDED: u64 = 1024;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < NEEDED => Err(Failure::new(format!(
            "a lab needs at least {NEEDED} open files, and {limit} are allowed"
        ))
        .hint(format!(
            "`ulimit -n {NEEDED}` as somebody who may, or `LimitNOFILE={NEEDED}` in the unit that starts this"
        ))),
        _ => Ok(()),
    }
}
