//! The storage double by hand: runs in the foreground until it is interrupted.
//!
//! ```text
//! store-double --bucket data --region cn-hangzhou --access-key me:secret
//! ```

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tests::double::{AccessKey, BucketConfig, Dialect, Double, DoubleConfig, Fault, Often, When};

/// A double of OSS and S3 on 127.0.0.1, with objects in memory. Not for real data.
#[derive(Debug, Parser)]
struct Arguments {
    /// The port; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A bucket; may be given several times.
    #[arg(long = "bucket", default_value = "test-bucket")]
    buckets: Vec<String>,
    /// The region of the buckets.
    #[arg(long, default_value = "cn-test")]
    region: String,
    /// A key, as ID:SECRET or ID:SECRET:TOKEN; may be given several times. Visible in the process list, so never a real one.
    #[arg(long = "access-key", default_value = "test-key:test-secret", value_parser = access_key)]
    keys: Vec<AccessKey>,
    /// Speaks only this protocol (oss or s3) instead of recognising it.
    #[arg(long, value_parser = dialect)]
    dialect: Option<Dialect>,
    /// Accepts OSS's old signature.
    #[arg(long)]
    allow_v1: bool,
    /// Lets anybody read without signing.
    #[arg(long)]
    public_read: bool,
    /// How far the server's clock is ahead, in seconds.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    clock_offset: i64,
    /// Delays every request, in milliseconds.
    #[arg(long, default_value_t = 0)]
    latency: u64,
    /// Makes requests fail with each of several faults with this probability, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    trouble: f64,
    /// The seed of the faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn access_key(text: &str) -> Result<AccessKey, String> {
    let mut fields = text.splitn(3, ':');
    match (fields.next(), fields.next(), fields.next()) {
        (Some(id), Some(secret), None) => Ok(AccessKey::new(id, secret)),
        // A day is longer than anybody plays with it.
        (Some(id), Some(secret), Some(token)) => {
            Ok(AccessKey::new(id, secret).with_token(token, Duration::from_secs(86_400)))
        }
        _ => Err("write ID:SECRET or ID:SECRET:TOKEN".to_owned()),
    }
}

fn dialect(text: &str) -> Result<Dialect, String> {
    match text {
        "oss" => Ok(Dialect::Oss),
        "s3" => Ok(Dialect::S3),
        _ => Err("known are oss and s3".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = DoubleConfig {
        port: arguments.port,
        dialect: arguments.dialect,
        allow_v1: arguments.allow_v1,
        clock_offset: arguments.clock_offset,
        seed: arguments.seed,
        keys: arguments.keys,
        buckets: arguments
            .buckets
            .into_iter()
            .map(|name| BucketConfig { name, region: arguments.region.clone(), public_read: arguments.public_read })
            .collect(),
        ..DoubleConfig::empty()
    };
    let double = match Double::try_start(config) {
        Ok(double) => double,
        Err(error) => {
            eprintln!("store-double: cannot listen on 127.0.0.1:{}: {error}; choose another --port", arguments.port);
            return ExitCode::FAILURE;
        }
    };
    if arguments.latency > 0 {
        double.fault(Fault::Latency(Duration::from_millis(arguments.latency)), When::any(), Often::Always);
    }
    if arguments.trouble > 0.0 {
        double.trouble(arguments.trouble);
    }
    println!("{}", double.endpoint());
    // Whoever started it reads the line to know where it is; if nobody does, that is fine.
    let _ = std::io::stdout().flush();
    loop {
        std::thread::park();
    }
}
