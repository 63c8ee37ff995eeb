"Package metadata lives in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

cfg = ConfigParser(delimiters=['='])
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    keywords=cfg['keywords'],
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['cotkd', 'cotkd.*']),
    package_data={'cotkd': ['assets/*', 'assets/*/*', 'results/*', 'results/campaigns/*',
                            'results/harness/*/*/*']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split(), 'math': ['math-verify'],
                    'quantize': ['torchao', 'bitsandbytes']},  # on a CPU, on a GPU
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': ['cotkd=cotkd._modidx:d']},  # documentation links are looked up here
    zip_safe=False,
)
