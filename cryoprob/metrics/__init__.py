"""Measures: FSC, alignment of maps, errors of poses and conformations, sharpening."""

from cryoprob.metrics.alignment import Alignment as Alignment
from cryoprob.metrics.alignment import align_maps as align_maps
from cryoprob.metrics.conformation_error import ClassError as ClassError
from cryoprob.metrics.conformation_error import PathError as PathError
from cryoprob.metrics.conformation_error import confusion as confusion
from cryoprob.metrics.conformation_error import path_error as path_error
from cryoprob.metrics.fsc import HalfMapFSC as HalfMapFSC
from cryoprob.metrics.fsc import corrected_fsc as corrected_fsc
from cryoprob.metrics.fsc import fsc as fsc
from cryoprob.metrics.fsc import half_map_fsc as half_map_fsc
from cryoprob.metrics.fsc import last_shell as last_shell
from cryoprob.metrics.fsc import randomize_phases as randomize_phases
from cryoprob.metrics.fsc import resolution as resolution
from cryoprob.metrics.fsc import write_fsc_csv as write_fsc_csv
from cryoprob.metrics.motion import Motion as Motion
from cryoprob.metrics.pose_error import PoseError as PoseError
from cryoprob.metrics.pose_error import align_poses as align_poses
from cryoprob.metrics.pose_error import pose_error as pose_error
from cryoprob.metrics.principal_curve import PrincipalCurve as PrincipalCurve
from cryoprob.metrics.principal_curve import principal_curve as principal_curve
from cryoprob.metrics.sharpening import GuinierFit as GuinierFit
from cryoprob.metrics.sharpening import b_factor as b_factor
from cryoprob.metrics.sharpening import fsc_weight as fsc_weight
from cryoprob.metrics.sharpening import sharpen as sharpen
