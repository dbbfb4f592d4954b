//! From process start to ready with the built-in model, and what it then holds of memory.
//!
//! `cargo bench -p requant-server --bench startup` prints the median, least and largest of 21 starts.

#![allow(
    clippy::expect_used,
    reason = "a benchmark that cannot run has nothing to say"
)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RUNS: usize = 21;

fn start() -> (Child, Duration) {
    let begin = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_requant-server"))
        .args([
            "--grpc-address",
            "127.0.0.1:0",
            "--metrics-address",
            "127.0.0.1:0",
        ])
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // The greeting's last line says that requests are answered.
    let ready = lines
        .map_while(Result::ok)
        .any(|line| line.starts_with("status") && line.ends_with("ready"));
    assert!(ready, "the server did not become ready");
    (child, begin.elapsed())
}

/// A line of /proc/PID/status in bytes.
fn memory(child: &Child, field: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line
        .trim_start_matches(':')
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .ok()?;
    Some(kib * 1024.0)
}

fn print(what: &str, unit: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    if let (Some(least), Some(largest)) = (values.first(), values.last()) {
        let median = values[values.len() / 2];
        println!("| {what} | {median:.1} {unit} | {least:.1} | {largest:.1} |");
    }
}

fn main() {
    let (mut times, mut resident) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (mut child, time) = start();
        times.push(time.as_secs_f64() * 1e3);
        // The system reports memory pages in its own time.
        std::thread::sleep(Duration::from_millis(100));
        resident.extend(memory(&child, "VmRSS").map(|bytes| bytes / 1e6));
        child.kill().expect("the server can be stopped");
        child.wait().expect("the server ends");
    }
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_requant-server")).map_or(0, |m| m.len());
    println!("| | median | least | largest |\n| --- | --- | --- | --- |");
    print("start to ready", "ms", times);
    print("resident memory when ready", "MB", resident);
    println!("\nbinary of this profile: {:.1} MB", size as f64 / 1e6);
}
