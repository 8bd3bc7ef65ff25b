"""Distribution `voxelbeam`: the packages `beam_jobs`, `trainer` and `serving`.

Ranges stand here; the exact, hashed sets that are developed and tested against are
`requirements.lock` (with tensorflow-io, and so TensorFlow 2.17) and `requirements-new.lock` (the
newest). `make lock` writes both from this file, `make setup` installs one.

Beam ships this project to its workers with `--setup_file=./setup.py`: it builds a source
distribution, and every worker installs it together with what it requires. A worker that only
converts DICOM never imports TensorFlow and is spared that large install: with
`VOXELBEAM_REQUIRES=conversion` in the environment, where `convert` puts it, the archive requires no
TensorFlow.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
# Workers run this file again, out of the archive and without the submitter's environment, so the
# choice travels as an empty file inside the archive.
CONVERSION_ONLY = HERE / "CONVERSION_ONLY"
conversion_only = os.environ.get("VOXELBEAM_REQUIRES") == "conversion" or CONVERSION_ONLY.exists()

# A worker's image brings packages of its own, Beam's image numpy 2 and protobuf 6, on which its gs://
# relies: no bound here that only an older TensorFlow needs, or pip would downgrade them. TensorFlow
# bounds the whole installation itself.
CONVERSION = [
    "apache-beam>=2.77,<2.78",
    "google-crc32c>=1.6,<2",
    "grpcio>=1.60,<2",
    "jinja2>=3.1,<4",
    "markupsafe>=2.1",
    "nibabel>=5.2,<6",
    "numpy>=1.26,<2.5",
    "obstore>=0.12.1,<0.13",  # every store
    "pandas>=2.2,<4",
    "pillow>=10.3",
    "protobuf>=4.25,<7",
    "pydicom>=3.0.1,<4",
    "requests>=2.32,<3",  # DICOMweb
    "rich>=13.7",
    "scipy>=1.13,<2",
    "threadpoolctl>=3.2,<4",
    "zstandard>=0.22,<1",  # Beam brings it too
    # Decoders of compressed pixel data, permissive licences only: pylibjpeg-libjpeg is GPL and
    # stays out. GDCM covers JPEG lossless.
    "pyjpegls>=1.4,<2",
    "pylibjpeg>=2.1,<3",  # pydicom looks for the two below through it
    "pylibjpeg-openjpeg>=2.3,<3",
    "pylibjpeg-rle>=2.0,<3",
    "python-gdcm>=3.0.24,<4",
]
LEARNING = [
    # tensorflow-hub stays out: it pulls another TensorFlow.
    "tensorflow>=2.17.1,<2.22",
    "h5py>=3.11,<4",
    "keras>=3.12,<4",
    "keras-tuner>=1.4.7,<1.5",
    "matplotlib>=3.8,<4",
    "packaging>=24",
    "pyarrow>=14.0.1,<26",
    "scikit-learn>=1.5,<2",
    "tensorboard>=2.17.1,<2.22",
]
EXTRAS = {
    # The second decoder. tensorflow-io's last release loads on TensorFlow 2.16 and 2.17 only.
    "io": [
        "tensorflow-io==0.37.1; python_version<'3.13'",
        "tensorflow>=2.17.1,<2.18; python_version<'3.13'",
        # What that TensorFlow bounds itself. Unless it is said here too, pip takes the newest first
        # and then tries release after release of whatever stands on numpy.
        "numpy<2; python_version<'3.13'",
        "protobuf<5; python_version<'3.13'",
        "tensorboard<2.18; python_version<'3.13'",
        "setuptools<81; python_version<'3.13'",  # this tensorboard imports pkg_resources
    ],
    # Not Beam's own `gcp` extra: it wants protobuf 6, which TensorFlow 2.17 excludes. This small
    # set is what Dataflow and gs:// need. Without google-auth-httplib2 Beam connects anonymously.
    "gcp": [
        "build>=1.2",  # Beam makes the workers' package with it
        # As Beam's own: from Python 3.13 on it does not import with an older one.
        "google-apitools>=0.5.31,<0.5.32; python_version<'3.13'",
        "google-apitools>=0.5.35; python_version>='3.13'",
        "google-api-core>=2.20,<3",
        "google-auth>=2.18,<3",
        "google-auth-httplib2>=0.2,<0.3",
        "google-cloud-dataflow-client>=0.13,<0.14",
        "google-cloud-storage>=2.18,<4",
    ],
    "aws": ["boto3>=1.34,<2", "botocore>=1.34,<2"],
    # Answers as DICOM: Structured Reports and Parametric Maps.
    "dicom_out": ["highdicom>=0.26,<0.29"],
    # cuDNN 9.11 has no code for compute capability below 7.5, for which TensorFlow is built: V100.
    "gpu": ["tensorflow[and-cuda]>=2.17.1,<2.22", "nvidia-cudnn-cu12<9.11"],
    "test": [
        "dcm2niix>=1.0.20250506",
        "dicomweb-client>=0.60,<0.62",  # a client of DICOMweb that is not ours
        # An emulator of gs://, and (moto with flask) one of s3://.
        "flask>=3,<4",
        "flask-cors>=5",
        "gcp-storage-emulator>=2024.8.3",
        "highdicom>=0.26,<0.29",
        "hypothesis>=6.100",
        "jax>=0.4.30,<1",  # another backend of Keras's, which every network must build on
        "medicai>=0.0.4,<0.1",  # networks of another package than ours
        "moto[s3]>=5.1,<6",
        "mypy>=1.13",
        "pandas-stubs>=2.2,<3",
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.8",
        # Below 81: tensorboard 2.17 imports pkg_resources. From 77: SPDX licence expressions.
        "setuptools>=77,<81",
        "SimpleITK>=2.4",
    ],
    # The site of `docs/`. mermaidx draws diagrams with Mermaid itself, without browser and network.
    "docs": ["mermaidx>=0.10,<0.11", "mkdocs>=1.6,<2", "pygments>=2.18"],
    "bench": [
        "dcm2niix>=1.0.20250506",
        "dicomweb-client>=0.60,<0.62",
        "psutil>=5.9",
        "SimpleITK>=2.4",
    ],
}


class SourceDistribution(sdist):
    """The standard source distribution, which carries the choice made for Beam's workers."""

    def run(self) -> None:
        super().run()
        if conversion_only:
            # Python takes it for what is installed, wherever it runs in this directory.
            shutil.rmtree(self.get_finalized_command("egg_info").egg_info)

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        if conversion_only:
            Path(base_dir, CONVERSION_ONLY.name).touch()


def version() -> str:
    """The version that `beam_jobs.common.version` says, read without importing the package."""
    text = (HERE / "beam_jobs" / "common" / "version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def readme() -> str:
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


setup(
    name="voxelbeam",
    version=version(),
    description="DICOM series to TFRecords, a Keras 3 trainer, and SavedModel batch prediction",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    entry_points={"console_scripts": ["voxelbeam = beam_jobs.common.console:main"]},
    packages=find_packages(include=["beam_jobs*", "trainer*", "serving*"]),
    package_data={
        **{name: ["py.typed"] for name in ("beam_jobs", "trainer", "serving")},
        **{name: ["templates/*"] for name in ("beam_jobs.report", "trainer.reports")},
    },
    install_requires=CONVERSION if conversion_only else CONVERSION + LEARNING,
    extras_require={} if conversion_only else EXTRAS,
    cmdclass={"sdist": SourceDistribution},
)
