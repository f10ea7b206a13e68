/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.cargo

import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Tonnes
import dev.tideline.core.done
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.onRefused
import dev.tideline.core.refuse
import dev.tideline.core.requireThat
import dev.tideline.core.sumOfTonnes
import dev.tideline.core.then
import kotlin.math.abs

/** Identifies a parcel of cargo. */
@JvmInline
value class ParcelId(val raw: String) {
    override fun toString(): String = raw
}

/** Names the classes of cargo that must be kept apart, or need not be. */
enum class CargoClass { PLAIN, FOOD, EXPLOSIVE, FLAMMABLE, CORROSIVE }

/** Describes a parcel of cargo. */
data class Parcel(val id: ParcelId, val mass: Tonnes, val cargo: CargoClass)

/** Places a parcel, with bays counted from the bow and rows to starboard of the keel. */
data class Placement(val parcel: Parcel, val bay: Int, val row: Int)

/** Says how far the load leans, where positive is aft and to starboard. */
data class Balance(val trim: Double, val list: Double)

/** Stows parcels so that the ship floats upright and nothing dangerous meets. */
class StowagePlan(
    private val bays: Int,
    private val rowsEachSide: Int,
    private val limit: Tonnes,
) {
    private val log = ledger<StowagePlan>()
    private val placements = mutableListOf<Placement>()

    /** Stows the parcel in the legal place that leaves the ship best balanced. */
    fun stow(parcel: Parcel): Outcome<Placement> =
        requireThat(placements.none { it.parcel.id == parcel.id }, Reason.DUPLICATE) {
            "parcel ${parcel.id} is already aboard"
        }
            .then {
                val mass = placements.map { it.parcel.mass }.sumOfTonnes() + parcel.mass
                requireThat(mass <= limit, Reason.FULL) { "$mass would be more than $limit" }
            }
            .then { findBest(parcel) }
            .onDone {
                placements += it
                log.note("parcel.stowed", "parcel" to parcel.id, "bay" to it.bay, "row" to it.row)
            }
            .onRefused { log.warn("parcel.refused", "parcel" to parcel.id, "reason" to it.reason) }

    /** Computes the balance of everything that is aboard. */
    fun balance(): Balance = balanceOf(placements)

    private fun findBest(parcel: Parcel): Outcome<Placement> {
        val places = (1..bays).flatMap { bay ->
            (-rowsEachSide..rowsEachSide).map { Placement(parcel = parcel, bay = bay, row = it) }
        }
        val legal = places.filter { place -> placements.none { clashes(place, it) } }
        val best = legal.minByOrNull { place ->
            val after = balanceOf(placements + place)
            abs(after.trim) + 2 * abs(after.list)
        }
        return best?.let { done(it) } ?: refuse(Reason.UNSAFE) { "no safe place is left for ${parcel.id}" }
    }

    private fun clashes(place: Placement, other: Placement): Boolean {
        val distance = maxOf(abs(place.bay - other.bay), abs(place.row - other.row))
        val pair = setOf(place.parcel.cargo, other.parcel.cargo)
        return distance == 0 || distance <= (APART[pair] ?: 0)
    }

    private fun balanceOf(load: List<Placement>): Balance {
        val middle = (bays + 1) / 2.0
        return Balance(
            trim = load.sumOf { it.parcel.mass.raw * (it.bay - middle) },
            list = load.sumOf { it.parcel.mass.raw * it.row },
        )
    }

    private companion object {
        val APART = mapOf(
            setOf(CargoClass.EXPLOSIVE, CargoClass.FLAMMABLE) to 3,
            setOf(CargoClass.EXPLOSIVE) to 2,
            setOf(CargoClass.FOOD, CargoClass.CORROSIVE) to 1,
            setOf(CargoClass.FLAMMABLE, CargoClass.CORROSIVE) to 1,
        )
    }
}
