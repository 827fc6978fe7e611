//! TensorBoard's event files: records of a length, its checksum, an `Event` message and its checksum.

use super::log::Entry;
use crate::error::Failure;
use protobuf::CodedOutputStream;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that is being written.
pub(super) struct Events {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Events {
    /// Starts a file in the directory. Its name tells time and process, so that a resumed run adds another one, as TensorBoard expects.
    pub(super) fn open(dir: &Path) -> Result<Events, Failure> {
        std::fs::create_dir_all(dir).map_err(|e| cannot(dir, e))?;
        let path = dir.join(format!("events.out.tfevents.{}.ancre.{}.0", now() as u64, std::process::id()));
        let file = BufWriter::new(File::create(&path).map_err(|e| cannot(&path, e))?);
        let mut events = Events { path, file };
        events.event(0, |out| out.write_string(3, "brain.Event:2"))?;
        Ok(events)
    }

    /// Adds a line of the log.
    pub(super) fn add(&mut self, e: &Entry) -> Result<(), Failure> {
        let mut all = vec![
            ("train/loss".to_string(), Some(e.loss)),
            ("train/accuracy".into(), e.accuracy),
            ("train/lr".into(), Some(e.lr)),
            ("train/grad_norm".into(), Some(e.grad_norm)),
            ("train/samples_per_second".into(), Some(e.samples_per_second)),
            ("val/loss".into(), e.val_loss),
            ("val/accuracy".into(), e.val_accuracy),
        ];
        for (stem, of) in [
            ("train/loss", &e.losses),
            ("train/accuracy", &e.accuracies),
            ("val/loss", &e.val_losses),
            ("val/accuracy", &e.val_accuracies),
        ] {
            all.extend(of.iter().map(|(name, v)| (format!("{stem}/{name}"), Some(*v))));
        }
        all.extend(e.val_metrics.iter().flatten().map(|(name, v)| (format!("val/{name}"), Some(*v))));
        let there: Vec<(String, f64)> = all.into_iter().filter_map(|(tag, v)| Some((tag, v?))).collect();
        self.event(e.step, |out| {
            let values = there
                .iter()
                .map(|(tag, v)| message(|out| out.write_string(1, tag).and_then(|()| out.write_float(2, *v as f32))));
            let values = values.collect::<protobuf::Result<Vec<_>>>()?;
            let summary = message(|out| values.iter().try_for_each(|v| out.write_bytes(1, v)))?;
            out.write_bytes(5, &summary)
        })
    }

    /// Writes what was added.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|e| cannot(&self.path, e))
    }

    fn event(
        &mut self,
        step: u64,
        what: impl FnOnce(&mut CodedOutputStream) -> protobuf::Result<()>,
    ) -> Result<(), Failure> {
        let event = message(|out| {
            out.write_double(1, now())?;
            out.write_int64(2, step as i64)?;
            what(out)
        });
        let event = event.map_err(|e| Failure::input(format!("cannot be written: {e}")).at(&self.path))?;
        let length = (event.len() as u64).to_le_bytes();
        let parts = [&length[..], &masked(&length), &event, &masked(&event)];
        parts.iter().try_for_each(|p| self.file.write_all(p)).map_err(|e| cannot(&self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn message(fields: impl FnOnce(&mut CodedOutputStream) -> protobuf::Result<()>) -> protobuf::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    fields(&mut out)?;
    out.flush()?;
    drop(out);
    Ok(bytes)
}

/// The checksum CRC-32C, turned and moved as these files have it.
fn masked(bytes: &[u8]) -> [u8; 4] {
    let step = |crc: u32, byte: &u8| {
        let shift = |c: u32, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 };
        (0..8).fold(crc ^ u32::from(*byte), shift)
    };
    let crc = !bytes.iter().fold(!0, step);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn cannot(path: &Path, e: std::io::Error) -> Failure {
    Failure::input(format!("cannot be written: {e}")).at(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_files() {
        // CRC-32C of "123456789" is e3069283.
        let turned = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked(b"123456789"), turned.to_le_bytes());
    }
}
