//! Files of a part, whole and damaged in every way.

use super::*;
use proptest::prelude::*;

type Index = Vec<u64>;

const BLOCKS: u8 = 3;

/// A part of three blocks and a short index.
fn well() -> File {
    let file = tempfile::tempfile().unwrap();
    let mut writer = PartWriter::new(file.try_clone().unwrap(), Part::Memory);
    for byte in 1..=BLOCKS {
        writer.push(&[byte; BLOCK_LEN]).unwrap();
    }
    writer.finish(&vec![7_u64; 5]).unwrap();
    file
}

fn open(file: &File) -> Result<(PartReader, Index), SavedError> {
    PartReader::open(file.try_clone().unwrap(), Part::Memory)
}

fn open_and_verify(file: &File) -> Result<(), SavedError> {
    open(file)?.0.verify()
}

fn len_of(file: &File) -> u64 {
    file.metadata().unwrap().len()
}

fn put(file: &File, offset: usize, bytes: &[u8]) {
    file.write_all_at(bytes, byte_len(offset)).unwrap();
}

#[test]
fn data_and_index_come_back_as_they_were_written() {
    let (reader, index) = open(&well()).unwrap();
    assert_eq!(index, [7; 5]);
    assert_eq!(reader.data_blocks(), u64::from(BLOCKS));
    for byte in 1..=BLOCKS {
        let mut block = [0; BLOCK_LEN];
        reader.read(u64::from(byte) - 1, &mut block).unwrap();
        assert!(block == [byte; BLOCK_LEN]);
    }
    reader.verify().unwrap();
}

#[test]
fn data_of_several_chunks_is_checked_chunk_by_chunk() {
    let file = tempfile::tempfile().unwrap();
    let mut writer = PartWriter::new(file.try_clone().unwrap(), Part::Disk);
    for block in 0..2 * 256 + 1_u32 {
        writer.push(&[block.to_le_bytes()[0]; BLOCK_LEN]).unwrap();
    }
    let written = writer.finish(&()).unwrap();
    assert_eq!(written.bytes, len_of(&file));
    let (reader, ()) = PartReader::open(file.try_clone().unwrap(), Part::Disk).unwrap();
    assert_eq!((reader.digest(), reader.data_blocks()), (written.digest, 513));
    assert_eq!(reader.chunk(2).unwrap().len(), BLOCK_LEN);
    put(&file, HEADER_LEN + CHUNK_LEN + 99, &[0xff]);
    assert!(reader.chunk(0).is_ok() && reader.chunk(2).is_ok());
    assert!(matches!(reader.verify(), Err(SavedError::Chunk { chunk: 1, .. })));
}

#[test]
fn a_digest_names_index_and_data() {
    let digest = |block: u8, index: u8| {
        let mut writer = PartWriter::new(tempfile::tempfile().unwrap(), Part::Memory);
        writer.push(&[block; BLOCK_LEN]).unwrap();
        writer.finish(&index).unwrap().digest
    };
    assert_eq!(digest(1, 1), digest(1, 1));
    assert_ne!(digest(1, 1), digest(2, 1));
    assert_ne!(digest(1, 1), digest(1, 2));
}

#[test]
fn every_byte_that_is_turned_around_is_found() {
    let file = well();
    for offset in 0..len_of(&file) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
        assert!(open_and_verify(&file).is_err(), "byte {offset}");
        file.write_all_at(&byte, offset).unwrap();
    }
    open_and_verify(&file).unwrap();
}

#[test]
fn a_file_of_any_other_length_is_refused() {
    let file = well();
    let whole = len_of(&file);
    file.set_len(whole + 1).unwrap();
    assert!(matches!(open(&file), Err(SavedError::Length { .. })));
    file.set_len(whole + (1 << 40)).unwrap();
    assert!(matches!(open(&file), Err(SavedError::Length { .. })));
    for len in (0..whole).rev() {
        file.set_len(len).unwrap();
        assert!(open(&file).is_err(), "{len} bytes");
    }
}

#[test]
fn a_file_that_was_not_finished_is_no_part() {
    let file = tempfile::tempfile().unwrap();
    let mut writer = PartWriter::new(file.try_clone().unwrap(), Part::Memory);
    for _ in 0..300 {
        writer.push(&[1; BLOCK_LEN]).unwrap();
    }
    drop(writer);
    assert!(len_of(&file) > byte_len(HEADER_LEN));
    assert!(matches!(open(&file), Err(SavedError::NotAPart { .. })));
}

#[test]
fn another_part_and_another_version_are_told_apart_from_damage() {
    let file = well();
    let as_disk = PartReader::open::<Index>(file.try_clone().unwrap(), Part::Disk);
    assert!(matches!(as_disk, Err(SavedError::NotAPart { part: Part::Disk })));
    put(&file, 8, &(VERSION + 1).to_le_bytes());
    assert!(matches!(open(&file), Err(SavedError::Version { found, .. }) if found == VERSION + 1));
    put(&file, 0, b"podfsave");
    assert!(matches!(open(&file), Err(SavedError::NotAPart { .. })));
}

#[test]
fn a_part_without_data_has_none() {
    assert!(matches!(read::<Index>(well(), Part::Memory), Err(SavedError::Malformed { .. })));
    let file = tempfile::tempfile().unwrap();
    let written = write(file.try_clone().unwrap(), Part::State, &3_u64).unwrap();
    let (index, digest) = read::<u64>(file, Part::State).unwrap();
    assert_eq!((index, digest), (3, written.digest));
}

/// Gives a file whatever header and index, under the right checksum.
fn forge(file: &File, data_len: u64, index: &[u8]) {
    let mut header = Header { data_len, index_len: byte_len(index.len()) }.encode(Part::Memory);
    let digest = digest_of(&header, index);
    header[DIGEST_AT..][..DIGEST_LEN].copy_from_slice(&digest.0);
    file.set_len(byte_len(HEADER_LEN) + data_len + byte_len(index.len())).unwrap();
    put(file, 0, &header);
    file.write_all_at(index, byte_len(HEADER_LEN) + data_len).unwrap();
}

#[test]
fn lengths_that_no_part_has_are_refused_whatever_the_checksum() {
    let file = tempfile::tempfile().unwrap();
    forge(&file, byte_len(BLOCK_LEN) + 1, &codec::encode(&(Vec::<Digest>::new(), Index::new())));
    assert!(matches!(open(&file), Err(SavedError::Malformed { .. })));
    // Data of a terabyte without a checksum.
    forge(&file, 1 << 40, &codec::encode(&(Vec::<Digest>::new(), Index::new())));
    assert!(matches!(open(&file), Err(SavedError::Malformed { .. })));
    for lengths in [[u64::MAX, 0], [0, u64::MAX], [u64::MAX, u64::MAX], [0, 200 << 20]] {
        put(&file, 16, &lengths.map(u64::to_le_bytes).concat());
        assert!(matches!(open(&file), Err(SavedError::Length { .. })), "{lengths:?}");
    }
    file.set_len(byte_len(HEADER_LEN) + INDEX_LEN_MAX + 1).unwrap();
    put(&file, 16, &[0, INDEX_LEN_MAX + 1].map(u64::to_le_bytes).concat());
    assert!(matches!(open(&file), Err(SavedError::Malformed { .. })));
}

#[test]
fn an_index_that_announces_more_than_it_has_is_refused() {
    let file = tempfile::tempfile().unwrap();
    forge(&file, 0, &codec::encode(&(Vec::<Digest>::new(), u64::MAX)));
    assert!(matches!(open(&file), Err(SavedError::Malformed { .. })));
    forge(&file, 0, &codec::encode(&u64::MAX));
    assert!(matches!(open(&file), Err(SavedError::Malformed { .. })));
}

proptest! {
    #[test]
    fn garbage_under_the_right_checksum_is_refused_or_read(
        data_len in prop_oneof![Just(0), 0..20_000_u64],
        index in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let file = tempfile::tempfile().unwrap();
        forge(&file, data_len, &index);
        if let Ok((reader, _)) = open(&file) {
            drop(reader.verify());
        }
    }

    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        let file = tempfile::tempfile().unwrap();
        put(&file, 0, &bytes);
        prop_assert!(open(&file).is_err());
        put(&file, 0, &MAGIC);
        put(&file, 8, &VERSION.to_le_bytes());
        put(&file, 12, &Part::Memory.number().to_le_bytes());
        prop_assert!(open(&file).is_err());
    }
}
