//! The REST client by hand, or by a test that wants it in a process of its own: settings, proxies and CA certificates are what
//! the environment says. `STORE_CLIENT_TOTAL_MS` is how long one operation may take with all its retries, in milliseconds.
//!
//! ```text
//! store-client read oss://bucket/key
//! ```

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use futures_util::StreamExt as _;
use oss::conformance::{conformance, sample};
use oss::{GetOptions, Location, PutMode, Settings, Stores};
use tests::client::ERROR;

/// A client of OSS and S3.
#[derive(Debug, Parser)]
enum Arguments {
    /// Prints an object.
    Read {
        /// Its location.
        location: String,
    },
    /// Writes an object of made-up bytes.
    Write {
        /// Its location.
        location: String,
        /// Its length in bytes.
        size: usize,
        /// The length of its parts in bytes; in one piece without.
        part: Option<usize>,
    },
    /// Runs the conformance suite.
    Conform {
        /// A directory that is empty.
        location: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Everything that any library says, so that a test can see that none says too much.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{ERROR}{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut settings = Settings::from_env()?;
    if let Ok(total) = std::env::var("STORE_CLIENT_TOTAL_MS") {
        let total = Duration::from_millis(total.parse().context("STORE_CLIENT_TOTAL_MS")?);
        settings.oss.timeouts.total = total;
        settings.s3.timeouts.total = total;
    }
    let stores = Stores::new(settings);
    match arguments {
        Arguments::Read { location } => {
            let location: Location = location.parse()?;
            let mut answer = stores.open(&location)?.get(location.key(), GetOptions::default()).await?;
            let mut stdout = std::io::stdout().lock();
            while let Some(bytes) = answer.body.next().await.transpose()? {
                stdout.write_all(&bytes).context("writing to standard output")?;
            }
            stdout.flush().context("writing to standard output")
        }
        Arguments::Write { location, size, part } => {
            let location: Location = location.parse()?;
            let (store, key, bytes) = (stores.open(&location)?, location.key(), sample(size, 1));
            let Some(part) = part else {
                store.put(key, bytes, PutMode::Overwrite).await?;
                return Ok(());
            };
            let upload = store.create_multipart(key).await?;
            let mut parts = Vec::new();
            for (number, start) in (1..).zip((0..size).step_by(part.max(1))) {
                let end = size.min(start + part);
                parts.push(store.put_part(key, &upload, number, bytes.slice(start..end)).await?);
            }
            store.complete_multipart(key, &upload, &parts, PutMode::Overwrite).await?;
            Ok(())
        }
        Arguments::Conform { location } => {
            let location: Location = location.parse()?;
            conformance(stores.open(&location)?, location.key().as_str()).await;
            Ok(())
        }
    }
}
