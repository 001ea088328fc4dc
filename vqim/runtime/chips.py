"""Facts about each generation of Cloud TPU chips, with their sources."""
import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation.

    Attributes:
      name: as in a topology, 'v4:2x2x1'.
      peak_flops: bfloat16 operations per second (Google's system architecture pages, cloud.google.com/tpu/docs/v4,
        v5e, v5p and v6e).
      hertz: the clock rate. 1.05 GHz is v4's (Jouppi et al. 2023, arXiv 2304.01433, table 4). The others follow from
        peak and matrix units: v5e 197e12 / (4 units x 128 x 128 x 2), v5p 459e12 / (8 x 128 x 128 x 2), v6e
        918e12 / (4 x 256 x 256 x 2). The compiler's cycles for a matrix product of 8192 x 8192 agree with them.
      hbm_bytes: bytes that a program may use, from the compiler's messages for programs that do not fit.
      hbm_bytes_per_second: from the pages above.
      link_bytes_per_second: speed of one link to a neighbour, in one direction. The pages above give the sum over all
        links of a chip: v4 2400 Gbps, 6 links of 50 GB/s (also in arXiv 2304.01433, table 4); v5e 1600, 4 of 50;
        v5p 4800, 6 of 100; v6e 3584, 4 of 112.
      torus_size: a dimension of a slice whose size is a multiple of this is a ring; otherwise it is a line.
      megacore: whether its two cores are one device.
      libtpu_type: its name in `tpu-env`.
    """

    name: str
    peak_flops: float
    hertz: float
    hbm_bytes: float
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    torus_size: int
    megacore: bool
    libtpu_type: str


CHIPS = {chip.name: chip for chip in (
    Chip("v4", 275e12, 1.05e9, 30.75 * GIB, 1200e9, 50e9, 4, True, "v4"),
    Chip("v5e", 197e12, 1.5e9, 15.75 * GIB, 819e9, 50e9, 16, False, "v5litepod"),
    Chip("v5p", 459e12, 1.75e9, 95.74 * GIB, 2765e9, 100e9, 4, True, "v5p"),
    Chip("v6e", 918e12, 1.75e9, 31.25 * GIB, 1640e9, 112e9, 16, False, "v6e"),
)}
