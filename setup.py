"""What pyproject.toml cannot say: the folder ``bundle`` is installed as data, in ``monai_mvreg/bundle``."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["monai_mvreg*"]), "monai_mvreg.bundle"],
    package_dir={"monai_mvreg.bundle": "bundle"},
)
