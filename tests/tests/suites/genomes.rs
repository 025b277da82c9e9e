//! bwa and samtools: a small reference and reads are indexed, aligned, sorted, and looked at by region.

use std::fmt::Write as _;

use bytes::Bytes;
use tests::tools;

use super::places::{Files, Places};

const CHROMOSOMES: [(&str, usize); 3] = [("chr1", 150_000), ("chr2", 90_000), ("chrM", 16_569)];
const PAIRS: usize = 4_000;
const READ: usize = 100;

fn base(random: &mut fastrand::Rng) -> u8 {
    b"ACGT"[random.usize(..4)]
}

fn complement(read: &[u8]) -> Vec<u8> {
    let other = |base: &u8| match base {
        b'A' => b'T',
        b'C' => b'G',
        b'G' => b'C',
        _ => b'A',
    };
    read.iter().rev().map(other).collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The same in every run: one base in a hundred of a read is not what the reference has.
fn sequences() -> Files {
    let mut random = fastrand::Rng::with_seed(42);
    let mut reference = String::new();
    let mut chromosomes = Vec::new();
    for (name, len) in CHROMOSOMES {
        let bases: Vec<u8> = (0..len).map(|_| base(&mut random)).collect();
        writeln!(reference, ">{name}").unwrap();
        bases.chunks(60).for_each(|line| writeln!(reference, "{}", text(line)).unwrap());
        chromosomes.push(bases);
    }
    let mut reads = [String::new(), String::new()];
    for pair in 0..PAIRS {
        let bases = &chromosomes[random.usize(..chromosomes.len())];
        let insert = random.usize(250..450);
        let start = random.usize(..bases.len() - insert);
        let fragment = &bases[start..start + insert];
        for (reads, mut read) in
            reads.iter_mut().zip([fragment[..READ].to_vec(), complement(&fragment[insert - READ..])])
        {
            for base_read in &mut read {
                if random.u8(..100) == 0 {
                    *base_read = base(&mut random);
                }
            }
            let qualities: Vec<u8> = (0..READ).map(|_| random.u8(b'5'..=b'I')).collect();
            writeln!(reads, "@pair{pair}\n{}\n+\n{}", text(&read), text(&qualities)).unwrap();
        }
    }
    let [first, second] = reads;
    [("genome/ref.fa", reference), ("lane/reads_1.fq", first), ("lane/reads_2.fq", second)]
        .map(|(name, content)| (name.to_owned(), Bytes::from(content)))
        .into()
}

#[test]
fn bwa_and_samtools_make_of_a_mount_what_they_make_of_a_disk() {
    tools::system("bwa", "bwa");
    tools::system("samtools", "samtools");
    let inputs = sequences();
    let places = Places::with(&inputs);
    // Lines with the command, and so the place, are not compared.
    let (_, made) = places.same(
        "align",
        &[],
        "bwa index -p ref \"$IN/genome/ref.fa\" 2> index.log && rm index.log
         bwa mem -t 2 -K 100000 ref \"$IN/lane/reads_1.fq\" \"$IN/lane/reads_2.fq\" 2> /dev/null | grep -v ^@PG > all.sam
         samtools sort --no-PG -@ 2 -m 4M -T part -o sorted.bam all.sam
         samtools index sorted.bam
         samtools view --no-PG -b sorted.bam chr1:1000-40000 > region.bam
         samtools faidx --fai-idx ref.fa.fai \"$IN/genome/ref.fa\"
         samtools quickcheck sorted.bam region.bam",
    );
    // Most of the reads must be at home, or nothing was aligned.
    assert!(made["sorted.bam"].len() > 100_000 && made["region.bam"].len() > 10_000);
    places.end();

    // The other way round: what was made is in the store, and only what is asked for is looked at.
    let mut stored = made;
    stored.insert("ref.fa".to_owned(), inputs["genome/ref.fa"].clone());
    stored.insert("lane/reads_1.fq".to_owned(), inputs["lane/reads_1.fq"].clone());
    let places = Places::with(&stored);
    let (printed, made) = places.same(
        "look",
        &[],
        "samtools view \"$IN/sorted.bam\" chr2:5000-9000 > region.sam
         samtools view -c \"$IN/sorted.bam\" chrM
         samtools flagstat \"$IN/sorted.bam\"
         samtools idxstats \"$IN/sorted.bam\"
         samtools faidx \"$IN/ref.fa\" chr1:77777-88888 > piece.fa
         samtools depth -a \"$IN/sorted.bam\" > depth
         samtools mpileup -f \"$IN/ref.fa\" -r chr2 \"$IN/sorted.bam\" 2> /dev/null > piled
         bwa mem -t 1 \"$IN/ref\" \"$IN/lane/reads_1.fq\" 2> /dev/null | grep -v ^@PG > again.sam",
    );
    assert!(
        printed.contains("properly paired")
            && ["region.sam", "piled", "depth", "again.sam"].iter().all(|name| made[*name].len() > 10_000),
        "{printed}"
    );
    places.end();
}
