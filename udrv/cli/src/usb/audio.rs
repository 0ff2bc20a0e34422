//! `udrv run usb-audio`: a WAV file or a tone to a sound device, or sound from it into a WAV file.

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use hound::{SampleFormat, WavReader, WavSpec, WavWriter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use udrv::clock::Deadline;
use udrv::irq::{Delivery, IrqDomain};
use udrv_usb_audio::driver::{Audio, Filled, Stream, Volume, Wanted};
use udrv_usb_audio::protocol::{Direction, Setting};

/// Silence after what was played, so that the device has played what it keeps in store before it is turned off.
const TAIL: Duration = Duration::from_millis(500);

/// How much longer than the sound itself a stream may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Of the largest sample: loud enough to be heard, and not to be startled.
const TONE_LEVEL: f64 = 0.25;

#[derive(Args)]
pub struct AudioArgs {
    #[command(flatten)]
    device: super::DeviceArgs,
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Show which streams it has.
    Info,
    /// Play a WAV file, at its own rate: nothing is resampled.
    Play {
        /// The file: PCM of up to 32 bits.
        file: PathBuf,
        /// First unmute it and set its volume: a number of dB, or `max`.
        #[arg(long, value_parser = volume, allow_hyphen_values = true)]
        volume: Option<Volume>,
    },
    /// Play a sine.
    Tone {
        /// Its frequency.
        #[arg(long, default_value_t = 440.0)]
        hz: f64,
        /// How long.
        #[arg(long, default_value_t = 1.0, value_parser = seconds)]
        seconds: f64,
        /// Frames a second.
        #[arg(long, default_value_t = 48_000)]
        rate: u32,
        /// First unmute it and set its volume: a number of dB, or `max`.
        #[arg(long, value_parser = volume, allow_hyphen_values = true)]
        volume: Option<Volume>,
    },
    /// Record into a WAV file.
    Capture {
        /// The file.
        file: PathBuf,
        /// How long.
        #[arg(long, default_value_t = 5.0, value_parser = seconds)]
        seconds: f64,
        /// Frames a second.
        #[arg(long, default_value_t = 48_000)]
        rate: u32,
    },
}

fn volume(text: &str) -> Result<Volume, String> {
    if text == "max" {
        return Ok(Volume::Max);
    }
    let db: f64 = text.parse().map_err(|_| "expected a number of dB, or `max`".to_owned())?;
    // 0x8000 is silence, and what is above +127.99 does not exist (UAC, 5.2.2.4.3.2).
    if (-127.0..128.0).contains(&db) {
        Ok(Volume::Db256((db * 256.0) as i16))
    } else {
        Err("expected -127 to 127".into())
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if seconds > 0.0 && seconds <= 3600.0 { Ok(seconds) } else { Err("expected up to an hour".into()) }
}

pub fn run(args: &AudioArgs) -> Result<()> {
    // Before the device is taken: a file that is none needs none.
    let file = match &args.work {
        Work::Play { file, .. } => Some(Sound::read(file)?),
        _ => None,
    };
    let audio = Audio::new(args.device.open()?)?;
    match (&args.work, file) {
        (Work::Play { volume, .. }, Some(sound)) => play(&audio, &sound, *volume),
        (Work::Tone { hz, seconds, rate, volume }, _) => play(&audio, &Sound::tone(*hz, *seconds, *rate), *volume),
        (Work::Capture { file, seconds, rate }, _) => capture(&audio, file, *seconds, *rate),
        _ => {
            audio.settings().iter().for_each(|setting| println!("{setting}"));
            Ok(())
        }
    }
}

/// Samples of some bits, as numbers with a sign.
struct Sound {
    rate: u32,
    channels: u16,
    bits: u16,
    samples: Vec<i32>,
}

impl Sound {
    fn read(file: &Path) -> Result<Self> {
        let bad = || format!("cannot read {} as a WAV file", file.display());
        let mut reader = WavReader::open(file).with_context(bad)?;
        let spec = reader.spec();
        ensure!(
            spec.sample_format == SampleFormat::Int && (8..=32).contains(&spec.bits_per_sample),
            "{} has samples of {} bits in floating point, or an odd size: expected integers of 8 to 32 bits",
            file.display(),
            spec.bits_per_sample
        );
        let samples = reader.samples().collect::<std::result::Result<_, _>>().with_context(bad)?;
        Ok(Self { rate: spec.sample_rate, channels: spec.channels, bits: spec.bits_per_sample, samples })
    }

    fn tone(hz: f64, seconds: f64, rate: u32) -> Self {
        let frames = (seconds * f64::from(rate)) as u32;
        let step = hz / f64::from(rate.max(1)) * std::f64::consts::TAU;
        let sample = |at| ((f64::from(at) * step).sin() * f64::from(i32::MAX) * TONE_LEVEL) as i32;
        Self { rate, channels: 1, bits: 32, samples: (0..frames).map(sample).collect() }
    }

    /// As the device takes it: with its channels (one is played on all), its bytes.
    fn bytes(&self, setting: &Setting) -> Vec<u8> {
        let copies = if self.channels == 1 { usize::from(setting.channels) } else { 1 };
        let (subframe, unused) = (usize::from(setting.subframe), 32 - u32::from(setting.subframe) * 8);
        let mut bytes = Vec::with_capacity(self.samples.len() * copies * subframe);
        for sample in &self.samples {
            // The most significant bits are those that every size has.
            let sample = sample.wrapping_shl(32 - u32::from(self.bits)) >> unused;
            for _ in 0..copies {
                bytes.extend(sample.to_le_bytes().into_iter().take(subframe));
            }
        }
        bytes
    }
}

fn play(audio: &Audio, sound: &Sound, volume: Option<Volume>) -> Result<()> {
    let wanted = |channels| Wanted { direction: Direction::Play, rate: sound.rate, channels };
    let own = audio.find(wanted(u8::try_from(sound.channels).ok()));
    let setting = if sound.channels == 1 { own.or_else(|_| audio.find(wanted(None)))? } else { own? }.clone();
    if let Some(volume) = volume {
        audio.set_volume(volume)?;
    }
    let mut bytes = sound.bytes(&setting);
    let frames = bytes.len() / setting.frame();
    bytes.resize(bytes.len() + (TAIL.as_secs_f64() * f64::from(sound.rate)) as usize * setting.frame(), 0);
    let mut at = 0;
    let source = move |buffer: &mut [u8]| {
        let left = bytes.get(at..).unwrap_or_default();
        let length = left.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), left.get(..length)) {
            to.copy_from_slice(from);
        }
        at += length;
        if length < buffer.len() { Filled::Last(length) } else { Filled::All }
    };
    let irqs = IrqDomain::new(Delivery::Thread)?;
    let stream = Stream::play(audio, &setting, sound.rate, &irqs, source)?;
    to_its_end(&irqs, &stream, frames, sound.rate)?;
    let counters = stream.counters();
    eprintln!(
        "played {frames} frames at {} Hz: {} underruns, {} packets lost, {} times told how much it takes",
        sound.rate, counters.underruns, counters.lost, counters.feedback
    );
    Ok(())
}

fn to_its_end(irqs: &IrqDomain, stream: &Stream, frames: usize, rate: u32) -> Result<()> {
    let long = Duration::from_secs_f64(frames as f64 / f64::from(rate.max(1)));
    let waited = irqs.wait("the end of the stream", Deadline::after(long + PATIENCE), || stream.has_ended());
    if let Some(error) = stream.take_error() {
        bail!(error);
    }
    Ok(waited?)
}

fn capture(audio: &Audio, file: &Path, seconds: f64, rate: u32) -> Result<()> {
    let setting = audio.find(Wanted { direction: Direction::Capture, rate, channels: None })?.clone();
    let bits = u16::from(setting.subframe) * 8;
    let spec = WavSpec {
        channels: setting.channels.into(),
        sample_rate: rate,
        bits_per_sample: bits,
        sample_format: SampleFormat::Int,
    };
    let bad = || format!("cannot write {}", file.display());
    let mut writer = WavWriter::create(file, spec).with_context(bad)?;
    let frames = (seconds * f64::from(rate)) as usize;
    let enough = frames * setting.frame();
    let captured = Arc::new(Mutex::new(Vec::with_capacity(enough)));
    let sink = {
        let captured = Arc::clone(&captured);
        move |bytes: &[u8]| {
            let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
            captured.extend_from_slice(bytes);
            captured.len() < enough
        }
    };
    let irqs = IrqDomain::new(Delivery::Thread)?;
    let stream = Stream::capture(audio, &setting, rate, &irqs, sink)?;
    to_its_end(&irqs, &stream, frames, rate)?;
    let captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
    for sample in captured.get(..enough).unwrap_or(&captured).chunks_exact(usize::from(setting.subframe)) {
        let value = sample.iter().rev().fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
        let unused = 32 - u32::from(bits);
        writer.write_sample((value << unused).cast_signed() >> unused).with_context(bad)?;
    }
    writer.finalize().with_context(bad)?;
    eprintln!("captured {frames} frames at {rate} Hz: {} packets lost", stream.counters().lost);
    Ok(())
}
