# Releases by make: `make -f release.mk push SOURCE=./My-Merge-4x7B REPO=me/My-Merge-4x7B-GGUF`.
# Nothing here needs time stamps: quantkit makes what is missing or changed.
SOURCE ?= ./My-Merge-4x7B
OUT ?= $(notdir $(SOURCE:/=))-GGUF
TYPES ?= Q4_K_M,Q5_K_M,Q6_K,Q8_0
REPO ?= $(error say where it goes: REPO=org/name)

.PHONY: plan release check push

plan:      # what would come of it, and what of it fits; nothing is written
	quantkit plan $(SOURCE) --types $(TYPES)

release:
	quantkit release $(SOURCE) -o $(OUT) --types $(TYPES)

check:     # read every byte again
	cd $(OUT) && sha256sum -c SHA256SUMS

push:
	quantkit release $(SOURCE) -o $(OUT) --types $(TYPES) --push $(REPO)
