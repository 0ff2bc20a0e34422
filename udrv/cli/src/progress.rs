//! How far long work has come, for whoever watches: on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `bytes` bytes on standard error; nothing where that is no terminal.
pub fn bytes(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
